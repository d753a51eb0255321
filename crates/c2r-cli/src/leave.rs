//! The end of the process.
#![cfg_attr(unix, expect(unsafe_code, reason = "the standard library cannot end a process without its exit handlers"))]

/// Ends the process with `code`, at once. The handlers that libtorch has for this moment take a tenth of a second to free
/// memory that the system frees anyway (docs/performance.md).
pub(crate) fn now(code: u8) -> ! {
    #[cfg(unix)]
    {
        use nix::libc;

        // SAFETY: without a stream, it takes all streams of C, where the prints of TorchScript models may still be.
        unsafe { libc::fflush(std::ptr::null_mut()) };
        // SAFETY: it takes an integer. Our own files are written and closed, and stdout has been flushed.
        unsafe { libc::_exit(code.into()) }
    }
    #[cfg(not(unix))]
    #[expect(clippy::exit, reason = "this is the end of `main`")]
    std::process::exit(code.into())
}
