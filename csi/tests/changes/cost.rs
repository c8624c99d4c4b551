//! The cost follows the change, not the volume. Figures are printed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use cas::Changes;

use crate::volume::{Volume, put};

const DIRECTORIES: usize = 400;
const FILES: usize = 50;

#[test]
fn one_file_of_twenty_thousand_costs_no_walk() {
    let Some(mut volume) = Volume::create("cost") else { return };
    for directory in 0..DIRECTORIES {
        for file in 0..FILES {
            put(
                volume.live().join(format!("{directory}/{file}")),
                format!("{directory} {file} and some more words"),
            );
        }
    }
    volume.step().unwrap();
    let begun = Instant::now();
    let mut walked = 0;
    for directory in fs::read_dir(volume.live()).unwrap() {
        for file in fs::read_dir(directory.unwrap().path()).unwrap() {
            file.unwrap().metadata().unwrap();
            walked += 1;
        }
    }
    let walk = begun.elapsed();
    println!("{walked} files; a walk with stat takes {walk:?}");
    assert_eq!(walked, DIRECTORIES * FILES);

    measure(&mut volume, "nothing", 0, |_| {});
    let one = measure(&mut volume, "one file rewritten", 1, |volume| put(volume.live().join("7/7"), "other"));
    let hundred = measure(&mut volume, "200 scattered files rewritten", 200, |volume| {
        for number in 0..200 {
            put(volume.live().join(format!("{}/{}", number * 2, number % FILES)), "other");
        }
    });
    measure(&mut volume, "200 scattered files with another mode", 200, |volume| {
        for number in 0..200 {
            let path = volume.live().join(format!("{}/{}", number * 2, number % FILES));
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    });
    measure(&mut volume, "one directory of 50 removed", 1, |volume| {
        fs::remove_dir_all(volume.live().join("9")).unwrap();
    });
    measure(&mut volume, "one directory of 50 moved", 1, |volume| {
        fs::rename(volume.live().join("8"), volume.live().join("7/moved")).unwrap();
    });
    measure(&mut volume, "nearly every file rewritten", (DIRECTORIES - 10) * FILES, |volume| {
        for directory in 10..DIRECTORIES {
            for file in 0..FILES {
                put(volume.live().join(format!("{directory}/{file}")), "all of them");
            }
        }
    });
    // Generous: other tests run beside this one.
    assert!(one < walk / 4, "one file took {one:?}, a walk {walk:?}");
    assert!(hundred < walk, "200 files took {hundred:?}, a walk {walk:?}");
}

/// Times the search alone, warm, the best of some.
fn measure(volume: &mut Volume, what: &str, about: usize, work: impl FnOnce(&Volume)) -> Duration {
    work(volume);
    let (took, changes) = volume.timed();
    let step = volume.step().unwrap();
    println!("{what} (about {about}): {took:?}; then {:?}, {:?}", step.effort, step.cost);
    drop::<Changes>(changes);
    took
}
