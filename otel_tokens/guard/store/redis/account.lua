-- Accounts, read and written: one per (budget, unit, scope). Runs before the text of every operation, then rules.lua.
--
-- Keys, all under one hash tag (`root` = "{prefix}"), so that one script may touch them on a cluster:
--   root:a:KEY   hash    an account               root:exp    zset  living leases by expiry
--   root:q:KEY   hash    its slices, by index     root:idx    zset  all accounts: budget NUL scope NUL unit NUL KEY
--   root:l:LEASE string  a lease                  root:wide   hash  limits set budget-wide: budget NUL unit
--                                                 root:sweep  string  where the index was last swept
-- A lease is "L" (lives), "X" (expired) or "S" (settled), then a line per account: amount, start of the slot, start
-- of the account, KEY. A declaration is "start end limit slice_ms slices wall keep_ms", budget, unit, scope, by line.
-- Numbers are doubles here: exact up to 2^53 (9 million USD in nano-USD), with a relative error of 1e-16 above.

local call, match, gmatch, format = redis.call, string.match, string.gmatch, string.format
local floor, max = math.floor, math.max
local root = KEYS[1]
local clock = call('TIME')
local now = clock[1] * 1000 + floor(clock[2] / 1000)
local hold = 0 -- how long the leases of this operation live, at least
local accounts, declarations = {}, {}

-- What most accounts never have; read only if the account is marked.
local RARE = {
  'extra', 'own', 'wide', 'finished', 'paused', 'review', 'grace_by', 'grace_at', 'carried', 'carried_from',
}

local function text(number)
  return format('%.0f', number)
end

local function declaration(line)
  local known = declarations[line]
  if not known then
    local start, stop, limit, slice, slices, wall, keep =
      match(line, '^(%d+) (%d+) (%-?%d+) (%d+) (%d+) (%d) (%d+)\n')
    known = {
      line = line,
      start = tonumber(start),
      stop = tonumber(stop),
      limit = tonumber(limit),
      slice = tonumber(slice),
      slices = tonumber(slices),
      wall = wall == '1',
      keep = tonumber(keep),
    }
    declarations[line] = known
  end
  return known
end

local function names(line)
  return match(line, '\n([^\n]*)\n([^\n]*)\n([^\n]*)$')
end

local function put(account, field, value)
  account[field] = value
  account.changed[field] = true
end

local function note(account, field, value)
  account[field] = value
  account.changed[field] = true
  account.changed.marked = true
  account.marked = 1
end

local function limit_of(account)
  return (account.own or account.wide or account.slot.limit) + account.extra
end

local function wide_limit(line)
  local budget, unit = names(line)
  return tonumber(call('HGET', root .. ':wide', budget .. '\0' .. unit))
end

local function blank(key, slot)
  return {
    key = key, slot = slot, changed = {}, used = 0, reserved = 0, born = now, expires = 0, extra = 0, finished = 0,
    paused = 0, review = 0, grace_by = '', grace_at = 0, carried = 0, carried_from = -1,
  }
end

local function load(key)
  local account = accounts[key]
  if account ~= nil then
    return account
  end
  local at = root .. ':a:' .. key
  local seen = call('HMGET', at, 'line', 'used', 'reserved', 'born', 'expires', 'oldest', 'marked')
  if not seen[1] then
    accounts[key] = false
    return false
  end
  account = blank(key, declaration(seen[1]))
  account.used = tonumber(seen[2]) or 0
  account.reserved = tonumber(seen[3]) or 0
  account.born = tonumber(seen[4]) or now
  account.expires = tonumber(seen[5]) or 0
  account.oldest = tonumber(seen[6])
  if seen[7] then
    account.marked = 1
    local rare = call('HMGET', at, unpack(RARE))
    for i, field in ipairs(RARE) do
      if field == 'grace_by' then
        account.grace_by = rare[i] or ''
      else
        account[field] = tonumber(rare[i]) or account[field]
      end
    end
  end
  accounts[key] = account
  return account
end

-- Two looks per new account keep the index free of accounts that Redis has dropped.
local function sweep()
  local from = call('GET', root .. ':sweep')
  local found = call('ZRANGEBYLEX', root .. ':idx', from and '(' .. from or '-', '+', 'LIMIT', 0, 2)
  for _, member in ipairs(found) do
    local key = match(member, '([^%z]*)$')
    if not accounts[key] and call('EXISTS', root .. ':a:' .. key) == 0 then
      call('ZREM', root .. ':idx', member)
    end
  end
  if #found == 2 then
    call('SET', root .. ':sweep', found[2])
  elseif from then
    call('DEL', root .. ':sweep')
  end
end

-- Rename the account that an earlier version kept for any window, if it had this one or the one before. Its leases name
-- the other key: what they reserve is not taken along.
local function adopt(key, slot)
  local budget, unit, scope = names(slot.line)
  local from = budget .. '|' .. unit .. '|' .. scope
  if key == from then
    return
  end
  local old = load(from)
  if not old or old.slot.wall ~= slot.wall or old.slot.slice ~= slot.slice or old.slot.slices ~= slot.slices
    or not ((old.slot.start == slot.start and old.slot.stop == slot.stop)
      or (slot.start > 0 and old.slot.stop == slot.start)) then
    return
  end
  call('RENAME', root .. ':a:' .. from, root .. ':a:' .. key)
  if call('EXISTS', root .. ':q:' .. from) == 1 then
    call('RENAME', root .. ':q:' .. from, root .. ':q:' .. key)
  end
  local member = budget .. '\0' .. scope .. '\0' .. unit .. '\0'
  call('ZREM', root .. ':idx', member .. from)
  call('ZADD', root .. ':idx', 0, member .. key)
  accounts[from], accounts[key] = false, nil
  local account = load(key)
  put(account, 'reserved', 0)
  return account
end

local function create(key, slot)
  local budget, unit, scope = names(slot.line)
  sweep()
  call('ZADD', root .. ':idx', 0, budget .. '\0' .. scope .. '\0' .. unit .. '\0' .. key)
  local account = blank(key, slot)
  accounts[key] = account
  put(account, 'born', now)
  put(account, 'updated', now)
  put(account, 'line', slot.line)
  local wide = wide_limit(slot.line)
  if wide then
    note(account, 'wide', wide)
  end
  return account
end

-- Rule 9, by Redis' own expiry: never early, moved at most every 1/8 of an hour, held up by living leases.
local function keep(account)
  local slot, at = account.slot, nil
  if not account.own then
    at = slot.stop > 0 and 2 * slot.stop - slot.start or slot.keep > 0 and now + slot.keep or nil
  end
  if not at then
    if account.expires ~= 0 then
      put(account, 'expires', 0)
      return 'PERSIST'
    end
  else
    at = max(at, now + hold + REMEMBER_MS)
    if at > account.expires then
      put(account, 'expires', at + REMEMBER_MS / 8)
      return 'PEXPIREAT', text(account.expires)
    end
  end
end

-- Write what changed. Every operation ends with it.
local function flush()
  for key, account in pairs(accounts) do
    if account and next(account.changed) then
      local command, moment = keep(account)
      local fields = {}
      for field in pairs(account.changed) do
        local value = account[field]
        if field == 'line' then
          value = account.slot.line
        end
        fields[#fields + 1] = field
        fields[#fields + 1] = type(value) == 'number' and text(value) or value or ''
      end
      local at = root .. ':a:' .. key
      call('HSET', at, unpack(fields))
      if command == 'PERSIST' then
        call('PERSIST', at)
        call('PERSIST', root .. ':q:' .. key)
      elseif command then
        call(command, at, moment)
      end
      if account.slot.slice > 0 and account.expires > 0 and (command or account.began) then
        call('PEXPIREAT', root .. ':q:' .. key, text(account.expires))
      end
    end
  end
end
