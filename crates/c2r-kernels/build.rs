//! Compiles `native/` with the headers of the libtorch that `torch-sys` found.

use std::{env, fs, path::PathBuf};

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
    build().opt_level(3).file("native/kernels.cpp").compile("c2r_kernels");
    // These only call what was compiled above and libtorch.
    build()
        .opt_level(1)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        // As libtorch itself was compiled: a class in its headers (at::RecordFunction) has one member less with it.
        .define("NDEBUG", None)
        .include(out)
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .files(
            ["convolution", "count", "cuda", "operators", "precision", "script", "sgd", "torchscript", "trace"]
                .map(|name| format!("native/{name}.cpp")),
        )
        .compile("c2r_operators");
    // The operators come first where they are linked: they need the kernels.
    println!("cargo:rustc-link-lib=static=c2r_kernels");
    // The driver of CUDA is loaded by name.
    println!("cargo:rustc-link-lib=dl");
}
