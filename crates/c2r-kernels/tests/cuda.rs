//! The CUDA kernels without a GPU: NVRTC compiles them, and a CPU runs the same source over emulated warps.

use std::{path::Path, process::Command};

use c2r_testkit::{relative_error, skipped};
use libloading::{Library, Symbol};
use tch::{Device, Kind, Tensor};

/// A Python with the package nvidia-cuda-nvrtc, which is NVRTC; `cargo xtask test` makes one and sets this.
const PYTHON: &str = "C2R_TEST_PYTHON";
const FIND_NVRTC: &str = "\
import glob, sysconfig
print(glob.glob(sysconfig.get_path('purelib') + '/nvidia/**/libnvrtc.so.*', recursive=True)[0])";

type In = *const f32;
type Out = *mut f32;
type Forward = unsafe extern "C" fn(i32, In, In, In, f32, i32, Out, Out);
type Backward = unsafe extern "C" fn(i32, In, In, In, In, In, i32, Out, Out, Out);
type FirstForward = unsafe extern "C" fn(i32, In, In, In, In, f32, i32, i32, Out, Out);
type FirstBackward = unsafe extern "C" fn(i32, In, In, In, In, In, In, i32, Out, Out, Out, Out);

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
    let features = [(32, 32), (16, 16), (8, 8), (64, 64), (128, 128), (4, 6)].map(|(height, width)| [0, height, width]);
    for size in features.into_iter().chain([[3, 32, 32], [1, 8, 8], [1, 28, 28]]) {
        let ptx = c2r_kernels::cuda_ptx(nvrtc, size, 80).unwrap();
        let name = if size[0] == 0 { "norm_relu_pool" } else { "first_block" };
        for kernel in ["forward", "backward"] {
            assert!(ptx.contains(&format!(".entry {name}_{kernel}(")), "{ptx}");
        }
        // What does not fit into registers would be slow memory. Registers are allocated for a real architecture only.
        let log = c2r_kernels::cuda::compiler_log(nvrtc, size, 90).unwrap();
        let kept = log.matches("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads").count();
        assert_eq!(kept, 2, "{size:?} spills: {log}");
    }
    let error = c2r_kernels::cuda_ptx(nvrtc, [-1, 8, 8], 80).unwrap_err().to_string();
    assert!(error.contains("NVRTC_ERROR_COMPILATION") && error.contains("blocks.cu("), "{error}");

    // A GPU between two architectures that NVRTC knows, one newer than all of them, and one that is too old.
    let target = |capability: i32| {
        let ptx = c2r_kernels::cuda_ptx(nvrtc, [0, 8, 8], capability).unwrap();
        let (_, from) = ptx.split_once(".target sm_").unwrap();
        from.lines().next().unwrap().trim().parse::<i32>().unwrap()
    };
    assert_eq!([80, 82, 90, 92].map(target), [80, 80, 90, 90]);
    assert!((100..999).contains(&target(999)), "{}", target(999));
    let error = c2r_kernels::cuda_ptx(nvrtc, [0, 8, 8], 21).unwrap_err().to_string();
    assert!(error.contains("compute capability 2.1"), "{error}");
}

/// Every size of the usual networks: rounding, some 1e-6, moves no value across zero where it would change a gradient, and almost
/// all windows are looked at.
#[test]
fn rounding_does_not_fail_the_comparison_before_first_use() {
    let images = [[3, 32, 32], [1, 28, 28], [1, 32, 32], [1, 8, 8]];
    let features =
        [(64, 64), (32, 32), (28, 28), (16, 16), (14, 14), (8, 8), (4, 4), (2, 2)].map(|(high, wide)| [0, high, wide]);
    for size in images.into_iter().chain(features) {
        let [distance, share] = c2r_kernels::cuda::trial_margin(size).unwrap();
        assert!(distance >= 1e-4 && share > 0.99, "{size:?}: {distance}, {share}");
    }
}

/// Turing has 64 KiB, Ampere and later at least 99.
#[test]
fn too_little_shared_memory_is_a_reason() {
    const KIB: i32 = 1024;
    let error = c2r_kernels::cuda::fits_shared_memory([3, 32, 32], 64 * KIB).unwrap_err().to_string();
    assert!(error.contains("64 KiB") && error.ends_with("need 93"), "{error}");
    for size in [[3, 32, 32], [1, 32, 32], [1, 28, 28], [1, 8, 8]] {
        c2r_kernels::cuda::fits_shared_memory(size, 99 * KIB).unwrap();
    }
    for size in [[1, 8, 8], [0, 32, 32], [0, 128, 128]] {
        c2r_kernels::cuda::fits_shared_memory(size, 64 * KIB).unwrap();
    }
}

#[test]
fn without_nvrtc_there_is_a_reason() {
    let error = c2r_kernels::cuda_ptx("/no/libnvrtc.so", [0, 32, 32], 80).unwrap_err().to_string();
    assert!(error.contains("/no/libnvrtc.so"), "{error}");
    assert!(c2r_kernels::cuda_state().is_empty(), "no GPU was asked");
}

/// Values around zero, the same in every run.
fn noise(shape: &[i64], step: f64) -> Tensor {
    let values = Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu));
    (values * step).frac().view(shape) - 0.4
}

/// Where the values of a contiguous tensor are.
fn at(tensor: &Tensor) -> Out {
    assert!(tensor.is_contiguous());
    tensor.data_ptr().cast()
}

/// `[N, C, H, W]` with the channels last in memory, as `[N, H, W, C]`.
fn last(x: &Tensor) -> Tensor {
    x.detach().permute([0, 2, 3, 1]).contiguous()
}

/// The output and all gradients, next to those of libtorch's operators.
fn same(what: &str, pairs: &[(Tensor, Tensor)]) {
    for (at, (got, expected)) in pairs.iter().enumerate() {
        assert_eq!(got.size(), expected.size(), "{what}: {at}");
        assert!(relative_error(got, expected) < 1e-5, "{what}: {at}: {got} {expected}");
    }
}

/// Sizes that are kept in registers and two that are not, windows that warps do not share evenly, two groups of channels.
#[test]
#[expect(unsafe_code, reason = "calls of the emulated kernels with the pointers of tensors that live through them")]
fn emulated_norms_give_the_plain_results() {
    let folder = tempfile::tempdir().unwrap();
    for (height, width, warps) in [(32, 32, 16), (8, 8, 4), (64, 64, 16), (36, 36, 16), (4, 6, 4), (2, 2, 4)] {
        let (n, channels) = (2, 35);
        let x = noise(&[n, channels, height, width], 0.754_877_666).set_requires_grad(true);
        let weight = (noise(&[channels], 0.618_033_99) + 0.7).set_requires_grad(true);
        let bias = noise(&[channels], 0.414_213_56).set_requires_grad(true);
        let expected = c2r_kernels::norm_relu_pool(&x, &weight, &bias, 1e-5).unwrap();
        let gradient = noise(&[n, channels, height / 2, width / 2], 0.569_840_29);
        let loss = (&expected * &gradient).sum(Kind::Float);
        let gradients = Tensor::run_backward(&[loss], &[&x, &weight, &bias], false, false);

        let library = emulated(folder.path(), [0, height, width], warps);
        let (input, out, x_gradient) = (last(&x), last(&expected).zeros_like(), last(&x).zeros_like());
        let moments = Tensor::zeros([n, channels, 2], (Kind::Float, x.device()));
        let sums = Tensor::zeros([2, n, channels], (Kind::Float, x.device()));
        let gradient = last(&gradient);
        // SAFETY: the functions have these signatures, and every tensor is contiguous, of the shape that they expect.
        unsafe {
            let forward: Symbol<'_, Forward> = library.get(b"emulate_forward").unwrap();
            forward(n as i32, at(&input), at(&weight), at(&bias), 1e-5, channels as i32, at(&moments), at(&out));
            let backward: Symbol<'_, Backward> = library.get(b"emulate_backward").unwrap();
            let given = [&input, &weight, &bias, &moments, &gradient].map(|tensor| at(tensor).cast_const());
            let [x, weight, bias, moments, gradient] = given;
            let (of_weight, of_bias) = (at(&sums), at(&sums.get(1)));
            let of_x = at(&x_gradient);
            backward(n as i32, x, weight, bias, moments, gradient, channels as i32, of_x, of_weight, of_bias);
        }
        let sums = sums.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let found = [out, x_gradient, sums.get(0), sums.get(1)];
        let expected = [last(&expected), last(&gradients[0]), gradients[1].copy(), gradients[2].copy()];
        same(&format!("{height}x{width}"), &found.into_iter().zip(expected).collect::<Vec<_>>());
    }
}

/// Images of every kind; three groups of filters, the last not full, on as many blocks of threads or fewer.
#[test]
#[expect(unsafe_code, reason = "calls of the emulated kernels with the pointers of tensors that live through them")]
fn emulated_first_blocks_give_the_plain_results() {
    let folder = tempfile::tempdir().unwrap();
    for (channels, height, width) in [(3, 32, 32), (1, 8, 8), (1, 28, 28), (3, 12, 20)] {
        let (n, filters) = (2, 37);
        let x = noise(&[n, channels, height, width], 0.754_877_666).set_requires_grad(true);
        let weight = noise(&[filters, channels, 3, 3], 0.324_717_96).set_requires_grad(true);
        let zero = Tensor::zeros([filters], (Kind::Float, x.device()));
        let norm_weight = (noise(&[filters], 0.618_033_99) + 0.7).set_requires_grad(true);
        let norm_bias = noise(&[filters], 0.414_213_56).set_requires_grad(true);
        let expected = c2r_kernels::block(&x, (&weight, &zero), (&norm_weight, &norm_bias), 1e-5).unwrap();
        let gradient = noise(&[n, filters, height / 2, width / 2], 0.569_840_29);
        let loss = (&expected * &gradient).sum(Kind::Float);
        let gradients = Tensor::run_backward(&[loss], &[&x, &weight, &norm_weight, &norm_bias], false, false);

        let library = emulated(folder.path(), [channels, height, width], height / 2);
        let gradient = last(&gradient);
        let run = |parts: i32, of_x: Out, of_weight: Out, sums: &Tensor| {
            let out = last(&expected).zeros_like();
            let moments = Tensor::zeros([n, filters, 2], (Kind::Float, x.device()));
            let given =
                [&x, &weight, &norm_weight, &norm_bias, &moments, &gradient].map(|tensor| at(tensor).cast_const());
            let [x, weight, norm_weight, norm_bias, at_moments, gradient] = given;
            let (n, filters) = (n as i32, filters as i32);
            // SAFETY: as above; null pointers are gradients that are not wanted.
            unsafe {
                let forward: Symbol<'_, FirstForward> = library.get(b"emulate_forward").unwrap();
                forward(n, x, weight, norm_weight, norm_bias, 1e-5, filters, parts, at(&moments), at(&out));
                let backward: Symbol<'_, FirstBackward> = library.get(b"emulate_backward").unwrap();
                let (of_norm, of_bias) = (at(&sums.get(0)), at(&sums.get(1)));
                backward(
                    n,
                    x,
                    weight,
                    norm_weight,
                    norm_bias,
                    at_moments,
                    gradient,
                    filters,
                    of_x,
                    of_weight,
                    of_norm,
                    of_bias,
                );
            }
            out
        };
        let x_gradient = x.detach().zeros_like();
        let weight_gradients = Tensor::zeros([n, filters, channels, 3, 3], (Kind::Float, x.device()));
        let sums = Tensor::zeros([2, n, filters], (Kind::Float, x.device()));
        let out = run(1, at(&x_gradient), at(&weight_gradients), &sums);
        let total = |each: &Tensor| each.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        let what = format!("{channels}x{height}x{width}");
        let found = [out.copy(), x_gradient.copy(), total(&weight_gradients), total(&sums.get(0)), total(&sums.get(1))];
        let plain = [&expected, &gradients[0], &gradients[1], &gradients[2], &gradients[3]];
        let plain =
            plain.into_iter().enumerate().map(|(i, tensor)| if i == 0 { last(tensor) } else { tensor.detach() });
        same(&what, &found.into_iter().zip(plain).collect::<Vec<_>>());
        // Only one of the two, as in an attack and in training.
        let (alone_x, alone_weight) = (x_gradient.zeros_like(), weight_gradients.zeros_like());
        let shared = run(2, at(&alone_x), std::ptr::null_mut(), &sums);
        let apart = run(3, std::ptr::null_mut(), at(&alone_weight), &sums);
        assert_eq!((alone_x, alone_weight), (x_gradient, weight_gradients), "{what}");
        assert_eq!((&shared, &apart), (&out, &out), "{what}");
    }
}

/// The kernels of this size (channels, height, width) as a library for the CPU.
#[expect(unsafe_code, reason = "loads what was compiled a moment ago")]
fn emulated(folder: &Path, [channels, height, width]: [i64; 3], warps: i64) -> Library {
    let path = folder.join(format!("emulated-{channels}-{height}-{width}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulated.cpp");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let defined = [("CHANNELS", channels), ("HEIGHT", height), ("WIDTH", width), ("WARPS", warps)];
    let status = Command::new(compiler)
        .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"])
        .args(defined.map(|(name, value)| format!("-DC2R_{name}={value}")))
        .arg(source)
        .arg("-o")
        .arg(&path)
        .status()
        .expect("the C++ compiler that libtorch's bindings need, too");
    assert!(status.success());
    // SAFETY: it has no initializers.
    unsafe { Library::new(&path) }.unwrap()
}
