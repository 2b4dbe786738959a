-- KEYS: lock, state. ARGV: token, fencing token. 1: nothing taken here later can be below it · 0: not held by this token.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local last, token = redis.call('HGET', KEYS[2], 'f') or '', ARGV[2]
-- As texts: Lua's numbers are not exact beyond 2^53.
if #last < #token or (#last == #token and last < token) then redis.call('HSET', KEYS[2], 'f', token) end
return 1
