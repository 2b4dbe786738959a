"""One lock, named by a URL: across threads (spm:), processes of a host (mpm:) and hosts (rpm+redis:).

    from ipcmutex import Mutex

    with Mutex("mpm:jobs") as hold:
        print(hold.token)

The URLs:

    spm:<id>                                        mpm:<id>  mpm:/path  mpm:./path  file:/path
    rpm+redis://[user:secret@]host[:port][/<id>]    rpm+rediss://... (TLS)
    rpm+redis+unix:///path/redis.sock?id=<id>       rpm+redis+sentinel://h1,h2/<master>/<id>
    rpm+redis+cluster://h1,h2/<id>                  rpm+redlock://h1,h2,h3/<id>

    All: ?fair=strict|eventual, label=<text>. mpm: mode=0660, remotefs=1. Redis: ttl=10s, renew=off, db=,
    prefix=, redis_key=, replicas=, connect_timeout=, policy=any, protocol=2|3, tls=on, ca= crt= key=; of
    Sentinels sentinel_user= sentinel_password=. An id is 1 to 200 bytes of A-Z a-z 0-9 . _ - (Redis: also
    / and :), but no .. and not . alone. Everything may be percent-encoded.

"""

from ._aio import AsyncHold, AsyncMutex
from ._ipcmutex import (
    AcquireTimeout,
    AuthError,
    Canceled,
    Closed,
    ConfigError,
    Forked,
    Hold,
    InternalError,
    InvalidArgument,
    IoError,
    IpcMutexError,
    LockLost,
    Mutex,
    NoSpace,
    NotOwner,
    PermissionDenied,
    ProtocolError,
    ResourceExhausted,
    Status,
    TimeoutOverflow,
    Unavailable,
    UnsafePath,
    Unsupported,
    __version__,
)

__all__ = [
    "AcquireTimeout",
    "AsyncHold",
    "AsyncMutex",
    "AuthError",
    "Canceled",
    "Closed",
    "ConfigError",
    "Forked",
    "Hold",
    "InternalError",
    "InvalidArgument",
    "IoError",
    "IpcMutexError",
    "LockLost",
    "Mutex",
    "NoSpace",
    "NotOwner",
    "PermissionDenied",
    "ProtocolError",
    "ResourceExhausted",
    "Status",
    "TimeoutOverflow",
    "Unavailable",
    "UnsafePath",
    "Unsupported",
    "__version__",
]
