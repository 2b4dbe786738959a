-- Also leaves the line and refuses a grant. ARGV: token, keep abandoned, compat, proc
-- 1 released · 3 a grant refused · 2 released before · 0 not this token's
local token, keep, compat = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'
local me = ARGV[4] .. '.' .. token
local value = redis.pcall('GET', key)
local was = redis.call('HMGET', state, 'o', 'l')
if value ~= token then
  local first = redis.call('ZRANK', line, me) == 0
  redis.call('ZREM', line, me)
  if compat and redis.call('GET', reserved) == token then redis.call('DEL', reserved) end
  if not value then
    advance(nil, 0, compat)
  elseif first and type(value) == 'string' then
    forewarn(redis.call('PTTL', key))
  end
  return was[2] == token and 2 or 0
end
-- The DEL first: it is never refused for want of memory, and what follows a write is not either.
redis.call('DEL', key)
local held = was[1] == token
if held and not keep then redis.call('HDEL', state, 'o') end
redis.call('HDEL', state, 'g')
redis.call('HSET', state, 'l', token)
redis.call('PEXPIRE', state, WEEK)
redis.call('ZREM', line, me)
advance(nil, 0, compat)
return held and 1 or 3
