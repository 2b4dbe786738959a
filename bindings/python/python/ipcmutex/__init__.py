"""One lock, named by a URL: across threads (spm:), processes of a host (mpm:) and hosts (rpm+redis:).

    from ipcmutex import Mutex

    with Mutex("mpm:jobs") as hold:
        print(hold.token)
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
