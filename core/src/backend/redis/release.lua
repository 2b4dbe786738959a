-- Also leaves the line and refuses a grant. ARGV: token, proc, ending: released, undone (the next hears what this one heard) or lost (it hears "abandoned")
-- 1 released · 3 a grant refused · 2 released before · 0 not this token's
local token, ending = ARGV[1], ARGV[3]
local me = ARGV[2] .. '.' .. token
local value = redis.pcall('GET', key)
if value ~= token then
  local first = call('ZRANK', line, me) == 0
  call('ZREM', line, me)
  if reserved and call('GET', reserved) == token then call('DEL', reserved) end
  if not value then
    advance(nil, 0)
  elseif first and type(value) == 'string' then
    forewarn(call('PTTL', key))
  end
  return call('HGET', state, 'l') == token and 2 or 0
end
-- The DEL first: it is never refused for want of memory, and what follows a write is not either.
call('DEL', key)
local was = call('HMGET', state, 'o', 'a')
local held, added = was[1] == token, false
if held and (ending == 'released' or (ending == 'undone' and was[2] ~= '1')) then
  added = call('HSET', state, 'l', token, 'g', '', 'o', '') == 3
else
  added = call('HSET', state, 'l', token, 'g', '') == 2
end
-- The state had gone: what is new lives no longer than it.
if added then call('PEXPIRE', state, WEEK) end
advance(nil, 0)
return held and 1 or 3
