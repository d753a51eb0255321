//! A timeline of what libtorch runs while a piece of code runs.

use std::{
    ffi::{CString, c_char},
    path::Path,
    ptr,
    sync::{Mutex, TryLockError},
};

use tch::Device;

use crate::{KernelError, taken};

unsafe extern "C" {
    fn c2r_trace_begin(gpu: bool) -> *mut c_char;
    fn c2r_trace_end(path: *const c_char) -> *mut c_char;
}

/// Runs `work`, which computes on `device`, and writes to `path` when which operator ran, with the kernels of a GPU: JSON of
/// Chrome's trace format, which Perfetto opens.
///
/// Only one piece of code is traced at a time.
///
/// # Errors
/// If another trace is being taken, by this thread or another, if the path is not UTF-8 or has a NUL byte, or what libtorch's
/// profiler says: the file cannot be written.
pub fn trace<T>(device: Device, path: &Path, work: impl FnOnce() -> T) -> Result<T, KernelError> {
    // libtorch's profiler is one for the process and does not check: a second trace ends the first, or the process.
    static ONE: Mutex<()> = Mutex::new(());
    /// Ends the profiler when `work` panics, too: it would refuse every later trace.
    struct Begun;
    impl Drop for Begun {
        fn drop(&mut self) {
            // SAFETY: without a path nothing is read; what comes back is null or of `strdup`.
            let _ = unsafe { taken(c2r_trace_end(ptr::null())) };
        }
    }
    let path = path.to_str().ok_or_else(|| KernelError(format!("the path of a trace is UTF-8, not {path:?}")))?;
    let path = CString::new(path).map_err(|error| KernelError(error.to_string()))?;
    let _one = match ONE.try_lock() {
        Err(TryLockError::WouldBlock) => {
            return Err(KernelError("another trace is being taken; trace one piece of code at a time".to_owned()));
        }
        // A trace that ended in a panic was ended all the same.
        Ok(one) => one,
        Err(TryLockError::Poisoned(one)) => one.into_inner(),
    };
    // SAFETY: what comes back is null or of `strdup`.
    unsafe { taken(c2r_trace_begin(device.is_cuda())) }.map_or(Ok(()), Err)?;
    let begun = Begun;
    let value = work();
    std::mem::forget(begun);
    // SAFETY: the path outlives the call; what comes back is null or of `strdup`.
    unsafe { taken(c2r_trace_end(path.as_ptr())) }.map_or(Ok(()), Err)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn the_timeline_has_what_ran_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let kind = (Kind::Float, Device::Cpu);
        let x = Tensor::ones([2, 3], kind);
        let file = folder.path().join("trace.json");
        // A trace that ended in a panic is forgotten.
        let panicking = || trace(Device::Cpu, &file, || panic!("on purpose"));
        assert!(std::panic::catch_unwind(panicking).is_err());
        let _before = x.sinh();
        let sum = trace(Device::Cpu, &file, || x.cosh().sum(Kind::Double).double_value(&[])).unwrap();
        let _after = x.sinh();
        assert!((sum - 6.0 * 1f64.cosh()).abs() < 1e-5);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("\"traceEvents\"") && text.contains("\"aten::cosh\""), "{text}");
        assert!(!text.contains("aten::sinh"), "{text}");
        // A second one, here or in another thread, leaves the first as it is.
        trace(Device::Cpu, &file, || {
            let other =
                || trace(Device::Cpu, &folder.path().join("other.json"), || drop(Tensor::ones([2], kind).sinh()));
            let errors = [other(), std::thread::scope(|scope| scope.spawn(other).join().unwrap())];
            assert!(errors.iter().all(|tried| tried.as_ref().unwrap_err().to_string().contains("another trace")));
            drop(x.tanh());
        })
        .unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("\"aten::tanh\"") && !text.contains("aten::sinh"), "{text}");
        let error = trace(Device::Cpu, Path::new("a\0b"), || ()).unwrap_err().to_string();
        assert!(error.contains("nul byte"), "{error}");
        #[cfg(unix)]
        {
            let path = Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff"));
            let error = trace(Device::Cpu, path, || ()).unwrap_err().to_string();
            assert!(error.contains("UTF-8"), "{error}");
        }
    }
}
