-- KEYS: lock and state of each hold. ARGV: token, ttl (0: looked for alone) and number of each. For each: 1 it stands, 0 lost.
local renewed = {}
for at = 1, #KEYS / 2 do
  local key, state = KEYS[2 * at - 1], KEYS[2 * at]
  local token, ttl, number = ARGV[3 * at - 2], ARGV[3 * at - 1], ARGV[3 * at]
  -- pcall: a key of another type is a loss of that hold alone.
  if redis.pcall('GET', key) == token then
    if ttl ~= '0' then
      -- One that comes late, by a connection that was given up, makes no lease shorter that was asked for since.
      local noted = redis.pcall('HGET', state, 'n')
      local last = type(noted) == 'string' and string.match(noted, '^' .. token .. ' (%d+)$')
      if not last or tonumber(number) >= tonumber(last) then
        redis.call('PEXPIRE', key, ttl)
        if number ~= '0' and number ~= last then redis.pcall('HSET', state, 'n', token .. ' ' .. number) end
        redis.call('PEXPIRE', state, 604800000)
      end
    end
    renewed[at] = 1
  else
    renewed[at] = 0
  end
end
return renewed
