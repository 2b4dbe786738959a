-- KEYS: lock, state. ARGV: token, fencing token. 1: nothing taken here later can be below it · 0: not held by this token.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if (tonumber(redis.call('HGET', KEYS[2], 'f')) or 0) < tonumber(ARGV[2]) then redis.call('HSET', KEYS[2], 'f', ARGV[2]) end
return 1
