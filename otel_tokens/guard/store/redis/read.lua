-- Balances. ARGV per slot: KEY, declaration, hard, grace, amount. Answers now and "used reserved limit" per slot.

reap()
local answer = {text(now)}
for i = 1, #ARGV, 5 do
  local slot = declaration(ARGV[i + 1])
  local account = load(ARGV[i])
  if account and account.slot.start >= slot.start then
    age(account)
    answer[#answer + 1] = text(used_by(account))
    answer[#answer + 1] = text(account.reserved)
    answer[#answer + 1] = text(limit_of(account))
  else
    answer[#answer + 1] = '0'
    answer[#answer + 1] = '0'
    answer[#answer + 1] = text(wide_limit(slot.line) or slot.limit)
  end
end
flush()
return table.concat(answer, ' ')
