//! The shape of the workspace: which crates know which, and what stands at its top.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Who may know whom. `types` may be known by everybody: it is the words.
const ARROWS: [(&str, &[&str]); 8] = [
    ("types", &[]),
    ("btrfs", &[]),
    ("proto", &["types"]),
    ("cas", &["types"]),
    ("csi", &["proto", "cas", "btrfs", "types"]),
    ("hub", &["proto", "cas", "types"]),
    ("orchestrator", &["proto", "types"]),
    ("ctl", &["orchestrator", "proto", "cas", "types"]),
];

/// Whom the tests of a crate may know beside that.
const IN_TESTS: [(&str, &str); 1] = [
    // The hub is tested through its own client.
    ("hub", "orchestrator"),
];

/// The whole-system tests may look at everything; nothing may look at them.
const TESTS: &str = "tests";

const TOP: [&str; 11] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "cas",
    "csi",
    "deploy",
    "hack",
    "hub",
    "proto",
    "tests",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("it is there")
}

#[test]
fn crates_know_each_other_only_along_the_arrows() {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap();
    let names: BTreeSet<_> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let arrows: BTreeMap<_, _> = ARROWS.into_iter().collect();
    let expected: BTreeSet<_> = arrows.keys().copied().chain([TESTS]).collect();
    assert_eq!(names, expected, "the crates of the workspace");
    for package in &metadata.packages {
        if package.name.as_str() == TESTS {
            continue;
        }
        let allowed: BTreeSet<_> = arrows[package.name.as_str()].iter().copied().collect();
        let known: BTreeSet<_> = package
            .dependencies
            .iter()
            .filter(|dependency| names.contains(dependency.name.as_str()))
            .filter(|dependency| {
                let arrow = (package.name.as_str(), dependency.name.as_str());
                !(dependency.kind == DependencyKind::Development && IN_TESTS.contains(&arrow))
            })
            .map(|dependency| dependency.name.as_str())
            .collect();
        let too_many: Vec<_> = known.difference(&allowed).collect();
        assert!(too_many.is_empty(), "{} knows {too_many:?}", package.name);
    }
}

#[test]
fn the_words_know_no_runtime_and_no_wire() {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap();
    let forbidden: [(&str, &[&str]); 4] = [
        ("types", &["tokio", "tonic", "prost"]),
        ("cas", &["tonic", "prost", "libbtrfsutil"]),
        ("hub", &["libbtrfsutil"]),
        ("btrfs", &["tokio", "tonic"]),
    ];
    for (name, forbidden) in forbidden {
        let package = metadata.packages.iter().find(|package| package.name.as_str() == name).unwrap();
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            assert!(!forbidden.contains(&dependency.name.as_str()), "{name} knows {}", dependency.name);
        }
    }
}

#[test]
fn the_top_holds_what_it_should_and_nothing_else() {
    // What git keeps: a build directory or an editor's file is no part of the project.
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = String::from_utf8(output.stdout).unwrap();
    let top: BTreeSet<_> = files
        .split('\0')
        .filter(|file| !file.is_empty())
        .map(|file| file.split('/').next().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert_eq!(top, TOP.into_iter().collect());
}

#[test]
fn unsafe_code_is_in_one_file() {
    let output = Command::new("git")
        .args(["grep", "-lE", r"^\s*#!?\[(allow|expect)\(unsafe_code|\bunsafe \{", "--", "*/src/*.rs"])
        .current_dir(root())
        .output()
        .unwrap();
    let files = String::from_utf8(output.stdout).unwrap();
    let elsewhere: Vec<_> = files.lines().filter(|file| *file != "csi/btrfs/src/sys.rs").collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}
