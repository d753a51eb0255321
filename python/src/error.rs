//! Errors of c2r as exceptions of Python.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError},
};

use c2r_attacks::AttackError;
use c2r_base::ClassifierError;
use c2r_run::exit;
use pyo3::{
    exceptions::{PyException, PyRuntimeError, PyValueError},
    prelude::*,
};

/// The first exception that Python code raised while c2r ran, or the first that ends everything (`KeyboardInterrupt` and
/// the like): the caller gets it back as it is.
#[derive(Clone, Default)]
pub(crate) struct Raised(Arc<Mutex<Option<PyErr>>>);

impl Raised {
    /// Keeps `error`; the result goes to the driver of the attacks instead.
    pub(crate) fn keep(&self, error: PyErr) -> ClassifierError {
        let text = error.to_string();
        Python::with_gil(|py| {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let goes_first = |kept: &PyErr| is_ordinary(kept, py) && !is_ordinary(&error, py);
            if kept.as_ref().is_none_or(goes_first) {
                *kept = Some(error);
            }
        });
        ClassifierError::new(text)
    }

    /// Forgets an exception that the evaluation has survived.
    pub(crate) fn forget_survived(&self) {
        Python::with_gil(|py| {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.as_ref().is_some_and(|kept| is_ordinary(kept, py)) {
                *kept = None;
            }
        });
    }

    /// The exception, if there was one.
    pub(crate) fn take(&self) -> Option<PyErr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether it is no `KeyboardInterrupt`, `SystemExit` or the like.
fn is_ordinary(error: &PyErr, py: Python<'_>) -> bool {
    error.is_instance_of::<PyException>(py)
}

/// `ValueError` with the error's causes.
pub(crate) fn value_error(error: impl Into<anyhow::Error>) -> PyErr {
    PyValueError::new_err(exit::message(&error.into()))
}

/// `RuntimeError` with the error's causes.
pub(crate) fn runtime_error(error: impl Into<anyhow::Error>) -> PyErr {
    PyRuntimeError::new_err(exit::message(&error.into()))
}

/// What `work` returns. A panic is a `RuntimeError`: otherwise it is a `PanicException`, which `except Exception` does not
/// catch.
pub(crate) fn caught<T>(what: &str, work: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(what, panic.as_ref())))
}

/// A panic as a `RuntimeError`, without the stack that libtorch writes into its errors.
pub(crate) fn panicked(what: &str, panic: &(dyn Any + Send)) -> PyErr {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    let text = c2r_run::exit::without_stack(text).trim_end_matches("\\n").trim_end();
    PyRuntimeError::new_err(format!("{what} failed: {text}"))
}

/// What stopped an evaluation: an argument that cannot be, or something that the model did.
pub(crate) fn of_attack(error: AttackError) -> PyErr {
    match error {
        AttackError::Config(_) | AttackError::Images(_) | AttackError::Targets(_) => value_error(error),
        other => runtime_error(other),
    }
}
