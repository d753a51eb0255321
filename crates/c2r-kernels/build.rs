//! Compiles `native/` with the headers of the libtorch that `torch-sys` found.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
};

fn main() {
    println!("cargo:rerun-if-changed=native");
    // torch-sys reads the same two.
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    let lib = env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    let root = env::var_os("LIBTORCH_INCLUDE").map_or_else(|| PathBuf::from(lib).join(".."), PathBuf::from);
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    let build = || {
        let mut build = cc::Build::new();
        // libtorch's headers have warnings of their own.
        // Debug information would double the time that libtorch's headers take.
        build.cpp(true).std("c++17").pic(true).debug(false).warnings(false).flag_if_supported("-Wno-psabi");
        build
    };
    // The source of the CUDA kernels as a literal: they are compiled where they run.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let kernels = fs::read_to_string("native/blocks.cu").expect("it is part of this crate");
    fs::write(out.join("blocks.cu.inc"), format!("R\"CUDA({kernels})CUDA\"")).expect("OUT_DIR can be written");
    // Libtorch's headers take most of the time, so they are read twice, not once for each file.
    let together = |name: &str, parts: &[&str]| {
        let file = out.join(format!("{name}.cpp"));
        let includes = parts.iter().map(|part| format!("#include \"{part}.cpp\"\n")).collect::<String>();
        fs::write(&file, includes).expect("OUT_DIR can be written");
        file
    };
    let parts = ["convolution", "count", "cuda", "operators", "precision", "sgd", "trace"];
    let files = [together("all_operators", &parts), together("all_scripts", &["script", "torchscript"])];
    let mut operators = build();
    operators
        // These only call what is compiled below and libtorch.
        .opt_level(1)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        // As libtorch itself was compiled: a class in its headers (at::RecordFunction) has one member less with it.
        .define("NDEBUG", None)
        .includes([out.as_path(), Path::new("native")])
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .files(files);
    thread::scope(|scope| {
        scope.spawn(|| {
            build().opt_level(3).files(["native/kernels.cpp", "native/tiled_blocks.cpp"]).compile("c2r_kernels")
        });
        operators.compile("c2r_operators");
    });
    // The operators come first where they are linked: they need the kernels.
    println!("cargo:rustc-link-lib=static=c2r_kernels");
    // The driver of CUDA is loaded by name.
    println!("cargo:rustc-link-lib=dl");
}
