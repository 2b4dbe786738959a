-- ARGV: compat. 1 if somebody held it, else 0. The owner field stays: the next hold hears "abandoned".
local compat = ARGV[1] == '1'
local value = redis.call('GET', key)
if not value then
  advance(nil, 0, compat)
  return 0
end
local was = redis.call('HMGET', state, 'o', 'p')
redis.call('DEL', key)
redis.call('HDEL', state, 'g')
if was[1] == value and was[2] then tell(was[2], 'L ' .. value) end
advance(nil, 0, compat)
return 1
