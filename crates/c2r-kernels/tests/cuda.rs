//! The CUDA kernels without a GPU: NVRTC compiles them, and a CPU runs the same source over emulated warps.

use std::{path::Path, process::Command};

use c2r_testkit::{assert_close, relative_error, skipped, toys};
use libloading::{Library, Symbol};
use tch::{Kind, Tensor};

/// A Python with the package nvidia-cuda-nvrtc, which is NVRTC; `cargo xtask test` makes one and sets this.
const PYTHON: &str = "C2R_TEST_PYTHON";
const FIND_NVRTC: &str = "\
import glob, sysconfig
print(glob.glob(sysconfig.get_path('purelib') + '/nvidia/**/libnvrtc.so.*', recursive=True)[0])";

type Forward = unsafe extern "C" fn(*const f32, *const f32, *const f32, f32, i32, i64, *mut f32, *mut f32);
type Backward = unsafe extern "C" fn(
    *const f32,
    *const f32,
    *const f32,
    *const f32,
    *const f32,
    i32,
    i64,
    *mut f32,
    *mut f32,
    *mut f32,
);

#[test]
fn nvrtc_compiles_the_kernels() {
    let Ok(python) = std::env::var(PYTHON) else {
        return skipped(&format!(
            "the compilation of the CUDA kernels: {PYTHON} is not set; `cargo xtask test` sets it"
        ));
    };
    let output = Command::new(python).args(["-c", FIND_NVRTC]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let nvrtc = String::from_utf8(output.stdout).unwrap();
    let nvrtc = nvrtc.trim();
    for (height, width) in [(32, 32), (16, 16), (8, 8), (64, 64), (128, 128), (4, 6)] {
        let ptx = c2r_kernels::cuda_ptx(nvrtc, height, width, "compute_80").unwrap();
        for kernel in ["norm_relu_pool_forward", "norm_relu_pool_backward"] {
            assert!(ptx.contains(&format!(".entry {kernel}(")), "{ptx}");
        }
        // What does not fit into registers would be slow memory.
        assert!(!ptx.contains(".local "), "{height}x{width} spills");
    }
    let error = c2r_kernels::cuda_ptx(nvrtc, 32, 32, "compute_none").unwrap_err().to_string();
    assert!(error.contains("architecture"), "{error}");
}

#[test]
fn without_nvrtc_there_is_a_reason() {
    let error = c2r_kernels::cuda_ptx("/no/libnvrtc.so", 32, 32, "compute_80").unwrap_err().to_string();
    assert!(error.contains("/no/libnvrtc.so"), "{error}");
    assert!(c2r_kernels::cuda_state().is_empty(), "no GPU was asked");
}

/// Sizes that are kept in registers and one that is not, windows that do not fill a warp, an odd number of planes.
#[test]
#[expect(unsafe_code, reason = "calls of the emulated kernels with the pointers of tensors that live through them")]
fn emulated_warps_give_the_plain_results() {
    let folder = tempfile::tempdir().unwrap();
    for (height, width) in [(32, 32), (8, 8), (64, 64), (4, 6)] {
        let what = format!("{height}x{width}");
        let (n, channels) = (3, 3);
        let x = (toys::images(n, [channels, height, width]) - 0.5).set_requires_grad(true);
        let weight = Tensor::from_slice(&[0.7f32, -1.3, 0.5]).set_requires_grad(true);
        let bias = Tensor::from_slice(&[0.3f32, 0.1, -0.2]).set_requires_grad(true);
        let expected = c2r_kernels::norm_relu_pool(&x, &weight, &bias, 1e-5).unwrap();
        let gradient = toys::images(n, [channels, height / 2, width / 2]) - 0.3;
        let loss = (&expected * &gradient).sum(Kind::Float);
        let gradients = Tensor::run_backward(&[loss], &[&x, &weight, &bias], false, false);

        let library = emulated(folder.path(), height, width);
        let out = expected.detach().zeros_like();
        let moments = Tensor::zeros([n * channels, 2], (Kind::Float, x.device()));
        let x_gradient = x.detach().zeros_like();
        let sums = Tensor::zeros([2, n, channels], (Kind::Float, x.device()));
        let at = |tensor: &Tensor| tensor.data_ptr().cast::<f32>();
        let planes = n * channels;
        // SAFETY: the functions have these signatures, and every tensor is contiguous, of the shape that they expect.
        unsafe {
            let forward: Symbol<'_, Forward> = library.get(b"emulate_forward").unwrap();
            forward(at(&x), at(&weight), at(&bias), 1e-5, channels as i32, planes, at(&moments), at(&out));
            let backward: Symbol<'_, Backward> = library.get(b"emulate_backward").unwrap();
            let of_bias = at(&sums).add(planes as usize);
            let (given, found) = (at(&gradient), at(&x_gradient));
            let channels = channels as i32;
            backward(at(&x), at(&weight), at(&bias), at(&moments), given, channels, planes, found, at(&sums), of_bias);
        }
        assert_close(&format!("{what} forward"), &out, &expected.detach(), 1e-5);
        let sums = sums.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        for (got, expected) in [x_gradient, sums.get(0), sums.get(1)].iter().zip(&gradients) {
            assert!(relative_error(got, expected) < 1e-5, "{what}: {got} {expected}");
        }
    }
}

/// The kernels for images of this size as a library for the CPU.
#[expect(unsafe_code, reason = "loads what was compiled a moment ago")]
fn emulated(folder: &Path, height: i64, width: i64) -> Library {
    let path = folder.join(format!("emulated-{height}x{width}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulated.cpp");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let status = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread"])
        .args([format!("-DC2R_HEIGHT={height}"), format!("-DC2R_WIDTH={width}")])
        .arg(source)
        .arg("-o")
        .arg(&path)
        .status()
        .expect("the C++ compiler that libtorch's bindings need, too");
    assert!(status.success());
    // SAFETY: it has no initializers.
    unsafe { Library::new(&path) }.unwrap()
}
