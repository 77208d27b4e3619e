-- The rules of base.py for one account: windows turn, slices leave, spending is booked, leases are given back.

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
  put(account, 'past_start', from)
  put(account, 'past_used', account.used)
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

-- The clock was ahead and was put right. What was spent meanwhile belongs to the window of now; the calls that run
-- settle against it as against a debt.
local function roll_back(account, slot)
  local ahead, from = account.used + account.reserved, account.slot.start
  local seen = call('HMGET', root .. ':a:' .. account.key, 'past_start', 'past_used')
  local past = tonumber(seen[1]) == slot.start and tonumber(seen[2]) or 0
  roll(account, slot)
  note(account, 'carried', ahead)
  note(account, 'carried_from', from)
  put(account, 'used', past + ahead)
  put(account, 'past_start', -1)
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
  local account = load(key) or adopt(key, slot)
  if not account then
    return create(key, slot)
  end
  local old = account.slot
  if old ~= slot then
    if slot.start <= now and old.start > now then
      roll_back(account, slot)
    elseif slot.start <= now and (slot.start > old.start or (slot.start ~= old.start and old.stop <= now)) then
      roll(account, slot)
    elseif slot.start == old.start then
      redeclare(account, slot)
    end
  end
  return account
end

-- Rule 3: what was booked while the clock was ahead is booked now; slices that left the window count no more; a repaid grace is forgotten after a whole window.
local function age(account)
  local slot = account.slot
  if account.born > now then
    put(account, 'born', now)
  end
  if slot.slice == 0 then
    return
  end
  local current = floor(now / slot.slice)
  local first = current - slot.slices
  if account.oldest and (account.oldest < first or account.oldest > current) then
    local at, gone, oldest = root .. ':q:' .. account.key, 0, nil
    local all = call('HGETALL', at)
    for i = 1, #all, 2 do
      local index = tonumber(all[i])
      if index < first then
        gone = gone + tonumber(all[i + 1])
        call('HDEL', at, all[i])
      elseif index > current then -- booked while the clock was ahead
        call('HDEL', at, all[i])
        call('HINCRBY', at, text(current), all[i + 1])
        oldest = oldest and oldest < current and oldest or current
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

-- The lines of a lease: what it reserves on which account, in which window of it.
local function lines_of(text)
  local lines = {}
  for amount, start, began, key in gmatch(text, '(%d+) (%d+) (%d+) ([^\n]+)\n') do
    lines[#lines + 1] = {amount = tonumber(amount), start = tonumber(start), began = tonumber(began), key = key}
  end
  return lines
end

-- Give back (-1) or take again (+1) what a line reserves on its account, or correct what was carried of it.
local function shift(line, sign)
  local account, change = load(line.key), sign * line.amount
  if not account then
    return
  end
  if account.slot.start ~= line.start and account.slot.start ~= line.began then
    correct(account, line.start, change)
  elseif change ~= 0 then
    put(account, 'reserved', account.reserved + change)
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
      for _, line in ipairs(lines_of(held)) do
        shift(line, -1)
      end
      call('SET', at, 'X' .. held:sub(2), 'PX', REMEMBER_MS)
    end
  end
end
