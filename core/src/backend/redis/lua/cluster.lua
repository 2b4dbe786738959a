-- A process hears on a channel in the slot of the lock, `{<lock>}:w:<process>`: so its node knows how many listen.
local PUBLISH, CHANNEL = 'SPUBLISH', string.sub(KEYS[3], 1, -6) .. 'w:'
-- While the slot is open for a move a key that is not there counts as moved, also one that this script has just taken away.
local function is_moving() return type(redis.pcall('EXISTS', string.sub(KEYS[3], 1, -6) .. 'none')) == 'table' end
