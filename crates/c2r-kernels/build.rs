//! Compiles `native/` with the headers of the libtorch that `torch-sys` found.

use std::{env, path::PathBuf};

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
        build.cpp(true).std("c++17").pic(true).warnings(false).flag_if_supported("-Wno-psabi");
        build
    };
    build().opt_level(3).file("native/kernels.cpp").compile("c2r_kernels");
    // These only call what was compiled above and libtorch.
    build()
        .opt_level(1)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .files(["native/operators.cpp", "native/torchscript.cpp"])
        .compile("c2r_operators");
    // The operators come first where they are linked: they need the kernels.
    println!("cargo:rustc-link-lib=static=c2r_kernels");
}
