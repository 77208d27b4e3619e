-- Reserve on all slots or none. ARGV: lease, ttl_ms, critical, then per slot: KEY, declaration, hard, grace, amount.
-- Answers "code now refused retry_at" and "used reserved limit" per slot; code 0 is moved, 1 granted, 2 limit,
-- 3 finished.

local lease, ttl, critical = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local at = root .. ':l:' .. lease
hold = ttl

for i = 5, #ARGV, 5 do
  local slot = declaration(ARGV[i])
  if slot.stop > 0 and (now < slot.start or now >= slot.stop) then
    return '0 ' .. text(now) .. ' -1 0'
  end
end

local function free(account)
  return limit_of(account) - account.used - account.reserved
end

local function refuses(account, slot, amount, grace)
  if account.finished == 1 then
    return true
  end
  if slot.wall then
    return now - account.born >= limit_of(account)
  end
  local room = free(account)
  if amount <= room then
    return false
  end
  if critical == '' or grace <= 0 or amount > room + grace then
    return true
  end
  return account.grace_by ~= critical and (account.grace_by ~= '' or account.used > limit_of(account))
end

local function retry_at(account)
  local slot = account.slot
  if slot.slice > 0 and account.oldest then
    return max(now, (account.oldest + slot.slices + 1) * slot.slice)
  end
  return slot.stop
end

reap()
local held = ttl > 0 and call('GET', at)
if held and held:sub(1, 1) == 'S' then
  -- The release of a cancelled caller overtook its admission on the way: nobody would give this reservation back.
  flush()
  return redis.error_reply('ERR lease ' .. lease .. ' has ended')
end
local seen, refused = {}, 0
for i = 4, #ARGV, 5 do
  local slot = declaration(ARGV[i + 1])
  local account = open(ARGV[i], slot)
  age(account)
  seen[#seen + 1] = account
  if ARGV[i + 2] == '1' and refuses(account, slot, tonumber(ARGV[i + 4]), tonumber(ARGV[i + 3]))
    and (refused == 0 or (account.finished == 1 and seen[refused].finished == 0)) then
    refused = #seen
  end
end

local answer = {'1', text(now), '-1', '0'}
if refused > 0 then
  local culprit = seen[refused]
  answer = {culprit.finished == 1 and '3' or '2', text(now), text(refused - 1), text(retry_at(culprit))}
else
  local lines = ''
  for n, account in ipairs(seen) do
    local i = 5 * n - 1
    local slot, amount = declaration(ARGV[i + 1]), tonumber(ARGV[i + 4])
    if slot.wall then
      amount = 0
    else
      if ARGV[i + 2] == '1' and amount > free(account) then
        note(account, 'grace_by', critical)
        note(account, 'grace_at', now)
      end
      if ttl > 0 then
        put(account, 'reserved', account.reserved + amount)
        put(account, 'updated', now)
      else
        book(account, amount)
      end
    end
    lines = lines .. text(amount) .. ' ' .. text(slot.start) .. ' ' .. text(account.slot.start) .. ' ' .. ARGV[i] .. '\n'
  end
  if ttl > 0 then
    local expires = now + ttl
    if held and held:sub(1, 1) == 'L' then
      lines = held:sub(2) .. lines
      expires = max(expires, tonumber(call('ZSCORE', root .. ':exp', lease)) or 0)
    end
    call('SET', at, 'L' .. lines)
    call('ZADD', root .. ':exp', text(expires), lease)
  end
end

for _, account in ipairs(seen) do
  answer[#answer + 1] = text(used_by(account))
  answer[#answer + 1] = account.slot.wall and '0' or text(account.reserved)
  answer[#answer + 1] = text(limit_of(account))
end
flush()
return table.concat(answer, ' ')
