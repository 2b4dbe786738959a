"""redis-py's own Lock, on its own key: `neighbour.py redis://host:port`, and commands on standard input."""

import sys

import redis

client = redis.Redis.from_url(sys.argv[1])
lock = None
for line in sys.stdin:
    match line.split():
        case ["try", key, ttl]:
            lock = client.lock(key, timeout=float(ttl))
            answer = lock.acquire(blocking=False)
        case ["take", key, ttl]:
            lock = client.lock(key, timeout=float(ttl))
            answer = lock.acquire()
        case ["release"]:
            try:
                lock.release()
                answer = True
            except redis.exceptions.LockError:
                answer = False
    print("yes" if answer else "no", flush=True)
