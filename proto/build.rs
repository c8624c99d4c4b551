//! Compiles the .proto files with protox, so that no protoc has to be on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "csi/v1/csi.proto",
        "opensail/hub/v1/hub.proto",
        "opensail/node/v1/node.proto",
        "opensail/node/v1/groups.proto",
        "opensail/node/v1/settings.proto",
        "opensail/files/v1/files.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().bytes(".opensail.files.v1").compile_fds(descriptors)?;
    Ok(())
}
