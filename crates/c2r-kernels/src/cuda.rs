//! What became of the CUDA kernels, and what their compiler says without a GPU.

use std::ffi::{CString, c_char};

use crate::{KernelError, cuda_state, taken, text};

unsafe extern "C" {
    fn c2r_cuda_log(
        nvrtc: *const c_char,
        size: *const i64,
        architecture: *const c_char,
        log: *mut *mut c_char,
    ) -> *mut c_char;
    fn c2r_cuda_trial_margin(size: *const i64, margin: *mut f64) -> *mut c_char;
}

/// The lines of [`cuda_state`] of kernels that were wanted and cannot be used, each with the reason.
pub fn unusable() -> Vec<String> {
    cuda_state().into_iter().filter(|line| is_unusable(line)).collect()
}

fn is_unusable(line: &str) -> bool {
    line.contains(": libtorch's operators")
}

/// What the compiler says of the kernels of a size (see [`crate::cuda_ptx`]) for a real architecture, such as `sm_90`: the
/// registers and the spills of each. Needs no GPU.
///
/// # Errors
/// If NVRTC cannot be loaded, and what it says of the source.
pub fn compiler_log(nvrtc: &str, size: [i64; 3], architecture: &str) -> Result<String, KernelError> {
    let c_text = |text: &str| CString::new(text).map_err(|error| KernelError(error.to_string()));
    let (nvrtc, architecture) = (c_text(nvrtc)?, c_text(architecture)?);
    let mut log = std::ptr::null_mut();
    // SAFETY: the texts and the three numbers live through the call; what comes back is null or of `strdup`.
    unsafe {
        match taken(c2r_cuda_log(nvrtc.as_ptr(), size.as_ptr(), architecture.as_ptr(), &mut log)) {
            Some(error) => Err(error),
            None => Ok(text(log).unwrap_or_default()),
        }
    }
}

/// What kernels of a size (see [`crate::cuda_ptx`]) are compared on before they are used, computed on the CPU: the least distance
/// from zero of a value that enters ReLU where a gradient comes from, and the share of the windows from which one comes.
///
/// Rounding must not move such a value to the other side, or right kernels are taken for wrong ones.
///
/// # Errors
/// The message of libtorch for a size that no kernel has.
pub fn trial_margin(size: [i64; 3]) -> Result<[f64; 2], KernelError> {
    let mut margin = [0.0; 2];
    // SAFETY: the three numbers and the two places live through the call; what comes back is null or of `strdup`.
    unsafe { taken(c2r_cuda_trial_margin(size.as_ptr(), margin.as_mut_ptr())).map_or(Ok(margin), Err) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_whether_its_kernel_is_used() {
        let of = "cuda:0, features of 8x8";
        assert!(!is_unusable(&format!("{of}: fused kernels, compared with libtorch's operators")));
        assert!(is_unusable(&format!("{of}: libtorch's operators, because its output differs")));
        assert!(is_unusable(&format!("{of}: libtorch's operators until there is memory, because CUDA out of memory")));
    }
}
