-- Give back a lease and book the actual amounts. ARGV: lease, then per slot: KEY, declaration, hard, grace, amount.
-- Answers nothing if the lease was settled before, else now and "before after reserved limit" per slot.

local lease = ARGV[1]
local at = root .. ':l:' .. lease
local held = call('GET', at)
local state = held and held:sub(1, 1)
if state == 'S' then
  return false
end
call('SET', at, 'S', 'PX', REMEMBER_MS)

-- What the lease still reserves per account, and the windows it was admitted in.
local reserved, windows = {}, {}
if held then
  for amount, start, began, key in gmatch(held, '(%d+) (%d+) (%d+) ([^\n]+)\n') do
    local known = windows[key] or {slot = tonumber(start)}
    known[tonumber(start)] = true
    known[tonumber(began)] = true
    windows[key] = known
    reserved[key] = (reserved[key] or 0) + (state == 'L' and tonumber(amount) or 0)
  end
  if state == 'L' then
    call('ZREM', root .. ':exp', lease)
  end
end

local function give_back(account, amount)
  if amount ~= 0 then
    put(account, 'reserved', max(0, account.reserved - amount))
  end
end

local function settle(key, slot, amount)
  local account, back = load(key), reserved[key] or 0
  if not account or account.slot.start < slot.start then
    if slot.stop > 0 and slot.stop <= now then
      return 0, 0, 0, slot.limit
    end
    account = open(key, slot)
  end
  if account.slot.start == slot.start or (windows[key] and windows[key][account.slot.start]) then
    age(account)
    local before = account.used
    give_back(account, back)
    book(account, amount)
    return before, account.used, account.slot.wall and 0 or account.reserved, limit_of(account)
  end
  correct(account, slot.start, amount - back)
  return account.used, account.used, account.reserved, limit_of(account)
end

local answer = {text(now)}
for i = 2, #ARGV, 5 do
  for _, number in ipairs({settle(ARGV[i], declaration(ARGV[i + 1]), tonumber(ARGV[i + 4]))}) do
    answer[#answer + 1] = text(number)
  end
  reserved[ARGV[i]] = nil
end

-- Accounts that only the lease names used nothing.
for key, amount in pairs(reserved) do
  local account = load(key)
  if account then
    if windows[key][account.slot.start] then
      give_back(account, amount)
    else
      correct(account, windows[key].slot, -amount)
    end
  end
end
flush()
return table.concat(answer, ' ')
