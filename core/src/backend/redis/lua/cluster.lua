-- A process hears on a channel in the slot of the lock, `{<lock>}:w:<process>`: so its node knows how many listen.
local PUBLISH, CHANNEL = 'SPUBLISH', string.sub(KEYS[3], 1, -6) .. 'w:'
