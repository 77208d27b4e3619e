-- The short way of `admit`: known accounts in their window, never touched by hand, with room, under a new lease, while
-- no lease is due. It decides nothing itself: in any other case nothing has happened yet and the long way follows.

local call, format = redis.call, string.format
local root = KEYS[1]
local lease, ttl = ARGV[1], tonumber(ARGV[2])

local function short_way()
  local clock = call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  if ttl == 0 or call('ZRANGEBYSCORE', root .. ':exp', '-inf', now, 'LIMIT', 0, 1)[1] then
    return
  end
  local until_then, moment = now + ttl + REMEMBER_MS, format('%.0f', now)
  local answer, totals, lines = {'1', moment, '-1', '0'}, {}, {}
  for i = 4, #ARGV, 5 do
    local key, line, amount = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 4])
    local seen = call('HMGET', root .. ':a:' .. key, 'line', 'used', 'reserved', 'expires', 'marked')
    if seen[1] ~= line or seen[5] or totals[key] then
      return
    end
    local start, stop, limit, slice, wall, keep =
      string.match(line, '^(%d+) (%d+) (%-?%d+) (%d+) %d+ (%d) (%d+)\n')
    local expires, reserved = tonumber(seen[4]) or 0, (tonumber(seen[3]) or 0) + amount
    if slice ~= '0' or wall ~= '0'
      or (ARGV[i + 2] == '1' and (tonumber(seen[2]) or 0) + reserved > tonumber(limit))
      or (stop ~= '0' and (now < tonumber(start) or now >= tonumber(stop)))
      or (expires > 0 and (until_then > expires or now + keep > expires)) then
      return
    end
    totals[key] = format('%.0f', reserved)
    lines[#lines + 1] = ARGV[i + 4] .. ' ' .. start .. ' ' .. start .. ' ' .. key .. '\n'
    answer[#answer + 1] = seen[2] or '0'
    answer[#answer + 1] = totals[key]
    answer[#answer + 1] = limit
  end
  if not call('SET', root .. ':l:' .. lease, 'L' .. table.concat(lines), 'NX') then
    return
  end
  for i = 4, #ARGV, 5 do
    call('HSET', root .. ':a:' .. ARGV[i], 'reserved', totals[ARGV[i]], 'updated', moment)
  end
  call('ZADD', root .. ':exp', format('%.0f', now + ttl), lease)
  return table.concat(answer, ' ')
end

local answer = short_way()
if answer then
  return answer
end
