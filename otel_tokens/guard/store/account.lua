-- Accounts: the rules of base.py for one (budget, unit, scope). Runs before the text of every operation.
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

local function drop_slices(account)
  if account.slot.slice > 0 then
    call('DEL', root .. ':q:' .. account.key)
  end
  if account.oldest then
    put(account, 'oldest', nil)
  end
end

local function clear_marks(account)
  if account.marked then
    note(account, 'extra', 0)
    note(account, 'finished', 0)
    note(account, 'paused', 0)
    note(account, 'review', 0)
    note(account, 'grace_by', '')
    note(account, 'grace_at', 0)
    note(account, 'carried', 0)
    note(account, 'carried_from', -1)
  end
end

local function book_slice(account, amount)
  local index = floor(now / account.slot.slice)
  call('HINCRBY', root .. ':q:' .. account.key, text(index), text(amount))
  if not account.oldest or index < account.oldest then
    account.began = not account.oldest -- the hash of slices is new and has no expiry yet
    put(account, 'oldest', index)
  end
end

-- Rule 2: into the next window. What grace left unpaid comes along (rule 7).
local function roll(account, slot)
  local carried = account.grace_by ~= '' and max(0, account.used + account.reserved - limit_of(account)) or 0
  local from = account.slot.start
  drop_slices(account)
  clear_marks(account)
  if carried > 0 then
    note(account, 'carried', carried)
    note(account, 'carried_from', from)
  end
  account.slot = slot
  put(account, 'line', slot.line)
  put(account, 'used', carried)
  put(account, 'reserved', 0)
  put(account, 'born', now)
  local wide = wide_limit(slot.line)
  if wide ~= account.wide then
    note(account, 'wide', wide)
  end
end

local function redeclare(account, slot)
  if slot.slice ~= account.slot.slice then
    drop_slices(account)
    account.slot = slot
    if slot.slice > 0 then
      book_slice(account, account.used)
    end
  end
  account.slot = slot
  put(account, 'line', slot.line)
end

-- The account of a slot, in the slot's window unless it is in a later one that still runs.
local function open(key, slot)
  local account = load(key)
  if not account then
    return create(key, slot)
  end
  local old = account.slot
  if old ~= slot then
    if slot.start > old.start or (slot.start ~= old.start and old.stop <= now) then
      roll(account, slot)
    elseif slot.start == old.start then
      redeclare(account, slot)
    end
  end
  return account
end

-- Rule 3: slices that left the window count no more; a repaid grace is forgotten after a whole window.
local function age(account)
  local slot = account.slot
  if slot.slice == 0 then
    return
  end
  local first = floor(now / slot.slice) - slot.slices
  if account.oldest and account.oldest < first then
    local at, gone, oldest = root .. ':q:' .. account.key, 0, nil
    local all = call('HGETALL', at)
    for i = 1, #all, 2 do
      local index = tonumber(all[i])
      if index < first then
        gone = gone + tonumber(all[i + 1])
        call('HDEL', at, all[i])
      elseif not oldest or index < oldest then
        oldest = index
      end
    end
    put(account, 'used', account.used - gone)
    put(account, 'oldest', oldest)
  end
  if account.grace_by ~= '' and now - account.grace_at >= slot.slice * slot.slices
    and account.used <= limit_of(account) then
    note(account, 'grace_by', '')
  end
end

local function book(account, amount)
  put(account, 'updated', now)
  if account.slot.wall then
    put(account, 'used', now - account.born)
    return
  end
  put(account, 'used', account.used + amount)
  if account.slot.slice > 0 then
    book_slice(account, amount)
  end
end

-- A lease of the window the debt came from used `difference` more (or less) than it had reserved.
local function correct(account, start, difference)
  if start == account.carried_from then
    difference = max(difference, -account.carried)
    note(account, 'carried', account.carried + difference)
    put(account, 'used', account.used + difference)
  end
end

local function used_by(account)
  return account.slot.wall and now - account.born or account.used
end

-- Give back (-1) or take again (+1) what the lines of a lease reserve.
local function shift(lines, sign)
  for amount, start, began, key in gmatch(lines, '(%d+) (%d+) (%d+) ([^\n]+)\n') do
    local account = load(key)
    if account then
      local change = sign * amount
      if account.slot.start == tonumber(start) or account.slot.start == tonumber(began) then
        if change ~= 0 then
          put(account, 'reserved', max(0, account.reserved + change))
        end
      else
        correct(account, tonumber(start), change)
      end
    end
  end
end

-- Rule 8. Bounded, so that a crowd of expired leases does not stop the server; the next operation goes on.
local function reap()
  local due = call('ZRANGEBYSCORE', root .. ':exp', '-inf', now, 'LIMIT', 0, 1000)
  for _, lease in ipairs(due) do
    local at = root .. ':l:' .. lease
    local held = call('GET', at)
    call('ZREM', root .. ':exp', lease)
    if held then
      local lines = held:sub(2)
      shift(lines, -1)
      call('SET', at, 'X' .. lines, 'PX', REMEMBER_MS)
    end
  end
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
