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

local held_by = {} -- the lines of each account
for _, line in ipairs(held and lines_of(held) or {}) do
  if state == 'X' then
    line.amount = 0 -- given back already
  end
  held_by[line.key] = held_by[line.key] or {}
  table.insert(held_by[line.key], line)
end
if state == 'L' then
  call('ZREM', root .. ':exp', lease)
end

-- Give back the lines and book the amount on the window they are of; on a later one, only correct its debt.
local function settle(key, slot, amount, lines)
  local account = load(key)
  if not account or account.slot.start < slot.start or account.slot.start > now then
    if slot.stop > 0 and slot.stop <= now then
      return 0, 0, 0, slot.limit
    end
    account = open(key, slot)
  end
  local mine = account.slot.start == slot.start
  for _, line in ipairs(lines) do
    mine = mine or account.slot.start == line.began
  end
  local difference = amount
  for _, line in ipairs(lines) do
    if mine or line.start ~= slot.start then
      shift(line, -1)
    else
      difference = difference - line.amount
    end
  end
  if not mine then
    correct(account, slot.start, difference)
    return account.used, account.used, account.reserved, limit_of(account)
  end
  age(account)
  local before = account.used
  book(account, amount)
  return before, account.used, account.slot.wall and 0 or account.reserved, limit_of(account)
end

local answer = {text(now)}
for i = 2, #ARGV, 5 do
  local key = ARGV[i]
  for _, number in ipairs({settle(key, declaration(ARGV[i + 1]), tonumber(ARGV[i + 4]), held_by[key] or {})}) do
    answer[#answer + 1] = text(number)
  end
  held_by[key] = nil
end
for _, lines in pairs(held_by) do -- accounts that only the lease names used nothing
  for _, line in ipairs(lines) do
    shift(line, -1)
  end
end
flush()
return table.concat(answer, ' ')
