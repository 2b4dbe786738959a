//! What `AsyncMutex` is made of: acquisitions and other work that tell their outcome to a callable.

use std::cell::RefCell;
use std::sync::Arc;

use ipcmutex::{EventWait, Timeout, Unforked};
use pyo3::prelude::*;

use crate::error::raise;
use crate::guest;
use crate::hold::Hold;

/// What waits for the interpreter on this thread.
type Told = Box<dyn FnOnce(Python<'_>) -> PyResult<()> + Send>;

thread_local! {
    /// Outcomes that are told when this thread has the interpreter again, which is soon.
    static SOON: RefCell<Option<Vec<Told>>> = const { RefCell::new(None) };
}

/// Tells of an outcome, with the interpreter: here and soon, or on a thread of the library.
fn with_interpreter(tell: impl FnOnce(Python<'_>) -> PyResult<()> + Send + 'static) {
    let tell = SOON.with_borrow_mut(|soon| match soon {
        Some(soon) => {
            soon.push(Box::new(tell));
            None
        }
        None => Some(tell),
    });
    if let Some(tell) = tell {
        // Whoever releases must not wait for the interpreter here. Once that is on its way out nobody is told, and a hold is
        // released by being dropped.
        ipcmutex::deliver(move || {
            guest::attached(|py| tell(py).unwrap_or_else(|raised| raised.write_unraisable(py, None)));
        });
    }
}

/// Runs `work` without the interpreter; what it is told of meanwhile is told here, with it again, and on no other thread. What the handler of
/// a signal raised meanwhile is for the caller to raise.
pub(crate) fn told_here<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> (T, PyResult<()>) {
    /// After a panic as well: what is told later must not wait for a call that is over.
    struct Soon;
    impl Drop for Soon {
        fn drop(&mut self) {
            drop(SOON.take());
        }
    }
    let (done, told) = guest::detached(py, || {
        SOON.set(Some(Vec::new()));
        let _soon = Soon;
        let done = work();
        (done, SOON.take().unwrap_or_default())
    });
    let mut raised = Ok(());
    for tell in told {
        // Whose turn comes after is told all the same.
        raised = first(py, raised, tell(py));
    }
    (done, raised)
}

/// An event loop that may watch connections: watch(watched) is called with each of them, on a library thread.
#[pyclass(frozen, module = "ipcmutex._ipcmutex")]
pub(crate) struct EventLoop(ipcmutex::EventLoop);

#[pymethods]
impl EventLoop {
    #[new]
    fn new(watch: Py<PyAny>) -> EventLoop {
        let watch = Arc::new(watch);
        EventLoop(ipcmutex::EventLoop::new(move |core| {
            let watch = watch.clone();
            with_interpreter(move |py| {
                // Without a descriptor to spare it is not watched, and what is asked goes the other way.
                let Ok(descriptor) = core.descriptor() else { return Ok(()) };
                let watched = Bound::new(py, Watched { core, descriptor: descriptor.into() })?;
                tell_surely(watch.bind(py), &[watched.into_any()])
            });
        }))
    }
}

/// A connection that an event loop reads.
#[pyclass(frozen, module = "ipcmutex._ipcmutex")]
pub(crate) struct Watched {
    core: ipcmutex::Watched,
    descriptor: Unforked,
}

#[pymethods]
impl Watched {
    /// -1 in a forked child, which does not have it.
    fn fileno(&self) -> i32 {
        self.descriptor.number().unwrap_or(-1)
    }

    /// It is watched from now on.
    fn start(&self) {
        self.core.start();
    }

    /// Reads what has come, and tells of it; False at the end.
    fn read(&self, py: Python<'_>) -> PyResult<bool> {
        let (goes_on, raised) = told_here(py, || self.core.read());
        raised.map(|()| goes_on)
    }
}

/// An acquisition under way.
#[pyclass(frozen, module = "ipcmutex._ipcmutex")]
pub(crate) struct Wait(EventWait);

#[pymethods]
impl Wait {
    /// Ends it; False if it has an outcome already, and nothing changes.
    fn cancel(&self, py: Python<'_>) -> bool {
        guest::detached(py, || self.0.cancel())
    }
}

pub(crate) fn start(
    py: Python<'_>,
    handle: &ipcmutex::Mutex,
    on: &EventLoop,
    timeout: Timeout,
    done: Py<PyAny>,
) -> PyResult<Wait> {
    let remote = handle.is_remote();
    let (wait, raised) = told_here(py, || {
        handle.acquire_on(&on.0, timeout, move |outcome| {
            with_interpreter(move |py| {
                let outcome = match outcome {
                    Ok(hold) => Bound::new(py, Hold::looped(hold, remote)).map(Bound::into_any),
                    Err(error) => Err(raise(py, &error)),
                };
                tell(done.bind(py), outcome)
            });
        })
    });
    if let Err(raised) = raised {
        // Nobody could, later.
        guest::detached(py, || wait.cancel());
        return Err(raised);
    }
    Ok(Wait(wait))
}

/// What becomes of a release, told to done(None, error).
pub(crate) fn released(done: Py<PyAny>) -> impl FnOnce(ipcmutex::Result<()>) + Send + 'static {
    move |outcome| {
        with_interpreter(move |py| {
            let outcome = match outcome {
                Ok(()) => Ok(py.None().into_bound(py)),
                Err(error) => Err(raise(py, &error)),
            };
            tell(done.bind(py), outcome)
        });
    }
}

impl EventLoop {
    pub(crate) fn core(&self) -> &ipcmutex::EventLoop {
        &self.0
    }
}

/// Runs job() on a short-lived thread of the library, then done(result, error) there. No executor is involved.
#[pyfunction]
pub(crate) fn offload(py: Python<'_>, job: Py<PyAny>, done: Py<PyAny>) {
    guest::detached(py, || {
        ipcmutex::offload(move || {
            guest::attached(move |py| {
                let outcome = guest::call0(job.bind(py));
                tell(done.bind(py), outcome).unwrap_or_else(|raised| raised.write_unraisable(py, None));
            });
        });
    });
}

/// done(result, error): one of them is None.
fn tell<'py>(done: &Bound<'py, PyAny>, outcome: PyResult<Bound<'py, PyAny>>) -> PyResult<()> {
    let py = done.py();
    let none = py.None().into_bound(py);
    match outcome {
        Ok(result) => tell_surely(done, &[result, none]),
        Err(error) => tell_surely(done, &[none, error.into_value(py).into_bound(py).into_any()]),
    }
}

/// Calls what does no harm if it is called again. On the main thread Python runs the handlers of signals in what it calls first: what
/// one of them raises, as Ctrl-C's does, comes back for the caller to raise, and the news is told nevertheless.
fn tell_surely<'py>(callable: &Bound<'py, PyAny>, arguments: &[Bound<'py, PyAny>]) -> PyResult<()> {
    /// Each signal that waits for its handler may end a call, and few wait at a time. What fails for another reason fails ever again.
    const CALLS: u32 = 10;
    let mut raised = Ok(());
    for _ in 0..CALLS {
        let called = guest::call(callable, arguments);
        let told = called.is_ok();
        raised = first(callable.py(), raised, called);
        if told {
            break;
        }
    }
    raised
}

/// Only one exception can be raised; another is told to `sys.unraisablehook`.
fn first(py: Python<'_>, raised: PyResult<()>, next: PyResult<()>) -> PyResult<()> {
    match (raised, next) {
        (Err(raised), Err(next)) => {
            next.write_unraisable(py, None);
            Err(raised)
        }
        (raised, next) => raised.and(next),
    }
}
