//! Links the binary at a fixed address: the keeper lives as long as the daemon and touches little, and
//! without relocations to apply its memory is half of what it would be (docs/performance.md).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bin=nexus=-no-pie");
}
