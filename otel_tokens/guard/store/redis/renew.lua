-- Let leases live on; those that had expired take their reservation again. ARGV: ttl_ms, leases. Answers now.

hold = tonumber(ARGV[1])
for i = 2, #ARGV do
  local lease = ARGV[i]
  local at = root .. ':l:' .. lease
  local held = call('GET', at)
  local state = held and held:sub(1, 1)
  if state == 'X' then
    for _, line in ipairs(lines_of(held)) do
      shift(line, 1)
    end
    call('SET', at, 'L' .. held:sub(2))
  elseif state == 'L' then
    -- Redis must not drop an account, for being idle, under a lease that lives on.
    for _, line in ipairs(lines_of(held)) do
      local account = load(line.key)
      if account and account.expires > 0 and now + hold + REMEMBER_MS > account.expires then
        put(account, 'expires', account.expires)
      end
    end
  end
  if state == 'X' or state == 'L' then
    call('ZADD', root .. ':exp', text(now + hold), lease)
  end
end
reap()
flush()
return text(now)
