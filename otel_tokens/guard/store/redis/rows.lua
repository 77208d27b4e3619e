-- A page of living accounts. ARGV: lower and upper bound in the index, accounts to look at, scope or "" and whether
-- the scope counts. Answers now, the bound of the next page ("" at the end), and a text per account.

reap()
local found = call('ZRANGEBYLEX', root .. ':idx', ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
local answer = {text(now), #found == tonumber(ARGV[3]) and '(' .. found[#found] or ''}
for _, member in ipairs(found) do
  local account = load(match(member, '([^%z]*)$'))
  if not account then
    call('ZREM', root .. ':idx', member)
  elseif account.slot.stop == 0 or account.slot.stop > now then
    local slot = account.slot
    local budget, unit, scope = names(slot.line)
    if ARGV[5] == '0' or scope == ARGV[4] then
      age(account)
      local used, limit = used_by(account), limit_of(account)
      local owing = account.grace_by ~= '' or account.carried > 0
      local numbers = {
        used, account.reserved, limit, slot.limit, account.extra, slot.start, slot.stop, slot.slice * slot.slices,
        owing and max(0, used - limit) or 0, account.finished,
        account.paused > now and account.paused or 0, account.review > now and account.review or 0,
        tonumber(call('HGET', root .. ':a:' .. account.key, 'updated')) or 0,
      }
      for i, number in ipairs(numbers) do
        numbers[i] = text(number)
      end
      answer[#answer + 1] = table.concat(numbers, ' ') .. '\n' .. budget .. '\n' .. unit .. '\n' .. scope .. '\n' .. account.key
    end
  end
end
flush()
return answer
