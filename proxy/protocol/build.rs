//! Makes the messages of `inference.proto` and of what it imports, and their description for reflection. Needs no protoc.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    for file in ["inference.proto", "model_config.proto"] {
        println!("cargo:rerun-if-changed={file}");
    }
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).open_file("inference.proto")?;
    let folder = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gives no OUT_DIR")?);
    fs::write(folder.join("inference.bin"), compiler.encode_file_descriptor_set())?;
    compiler.include_source_info(true);
    prost_build::Config::new().bytes(["."]).btree_map(["."]).compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
