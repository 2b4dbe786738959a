-- The lock, then its helpers; the last one only beside other libraries.
local key, line, state, reserved = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local WEEK = 604800000
local call = redis.call
