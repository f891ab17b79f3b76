//! Compiles the shim and tells the linker where libtorch is, which torch-sys has found out.

fn main() {
    #[cfg(feature = "torch")]
    shim();
}

#[cfg(feature = "torch")]
fn shim() {
    let lib =
        std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is: see its build.rs");
    let include = std::path::Path::new(&lib).with_file_name("include");
    cxx_build::bridge("src/torch.rs")
        .file("src/shim.cc")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .include(
            std::env::var("DEP_MIMALLOC_INCLUDE_DIR").expect("libmimalloc-sys says where its headers are"),
        )
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // libtorch's headers, not ours, would drown everything else.
        .warnings(false)
        .compile("penstock-shim");
    println!("cargo:rerun-if-changed=src/torch.rs");
    println!("cargo:rerun-if-changed=src/shim.cc");
    println!("cargo:rerun-if-changed=src/shim.h");
    // Where it is on the machine that built, else beside the binary: bin/penstock-engine, lib/libtorch_cpu.so.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
}
