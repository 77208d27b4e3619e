-- Change running accounts by hand, a page at a time. ARGV: lower and upper bound in the index, accounts to look at,
-- budget, what to do, unit or "", amount, scope or "" and whether the scope counts, whether this is the first page.
-- Answers now, the bound of the next page ("" at the end), how many were changed.

local budget, op, unit, amount = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local scope, own = ARGV[8], ARGV[9] == '1'
local count = 0

if ARGV[10] == '1' and not own and (op == 'set' or op == 'unset') then
  if op == 'set' then
    call('HSET', root .. ':wide', budget .. '\0' .. unit, text(amount))
  else
    call('HDEL', root .. ':wide', budget .. '\0' .. unit)
  end
  count = 1
end

local function reset(account)
  drop_slices(account)
  clear_marks(account)
  put(account, 'used', 0)
  put(account, 'born', now)
end

local changes = {
  add = function(account)
    note(account, 'extra', account.extra + amount)
    note(account, 'finished', 0)
  end,
  set = function(account)
    note(account, own and 'own' or 'wide', amount)
  end,
  unset = function(account)
    note(account, own and 'own' or 'wide', nil)
  end,
  reset = reset,
  finish = function(account)
    note(account, 'finished', 1)
  end,
  pause = function(account)
    note(account, 'paused', max(account.paused, amount))
  end,
  review = function(account)
    note(account, 'review', amount)
  end,
}

local found = call('ZRANGEBYLEX', root .. ':idx', ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
for _, member in ipairs(found) do
  local account = load(match(member, '([^%z]*)$'))
  if account and (account.slot.stop == 0 or account.slot.stop > now) then
    local _, its_unit, its_scope = names(account.slot.line)
    if (unit == '' or unit == its_unit) and (not own or scope == its_scope) then
      changes[op](account)
      count = count + 1
    end
  end
end
flush()
return {text(now), #found == tonumber(ARGV[3]) and '(' .. found[#found] or '', text(count)}
