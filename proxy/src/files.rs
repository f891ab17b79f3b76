//! Replaces a file at once: whoever reads it, or is killed meanwhile, finds the old content or the new one. And reads one
//! that may be anything, however long.

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// What is written is called as the file, with so many letters by chance and then this, until it takes its place.
const CHANCE: usize = 6;
const NEW: &str = ".new";

/// Keeps other processes from what this lock file is for, as long as what is given back lives. Where the file system knows no
/// locks there is nobody to keep from it.
pub(crate) fn alone(lock: &Path) -> anyhow::Result<File> {
    let opened = File::options().create(true).truncate(false).write(true).open(lock);
    let file = opened.with_context(|| format!("cannot write {}", lock.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => anyhow::bail!(
            "another penstock is using it ({} is locked): each needs its own, or one undoes what the other has saved",
            lock.display()
        ),
        Err(error) => tracing::warn!("{} cannot be locked: {error}", lock.display()),
        Ok(()) => {}
    }
    Ok(file)
}

/// A file that has at most so many bytes; of a longer one the beginning, which is one byte more than that. `-` is standard input.
pub(crate) fn read_at_most(file: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    if file == Path::new("-") {
        at_most(io::stdin(), bytes_max)
    } else {
        at_most(File::open(file)?, bytes_max)
    }
}

/// The same, but of nothing that is no file: whoever opens a pipe waits for its writer, perhaps for ever.
pub(crate) fn read_file_at_most(file: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    at_most(file, bytes_max)
}

fn at_most(file: impl Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes what a process has left that was killed while it replaced this file, and that is so old: another one may be writing. What
/// cannot be removed does no harm.
pub(crate) fn sweep(file: &Path, age_min: Duration) {
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let (folder, name) = folder_and_name(&file);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_left = entry.metadata().is_ok_and(|entry| {
            let age = entry.modified().ok().and_then(|modified| modified.elapsed().ok());
            entry.is_file() && age.unwrap_or_default() >= age_min
        });
        if is_new_of(name, &entry.file_name()) && is_left && fs::remove_file(entry.path()).is_ok() {
            tracing::info!("{} was left by a process that was killed: removed", entry.path().display());
        }
    }
}

/// Whether a file has a name that [`replace`] gives to what it writes before it is called `name`.
fn is_new_of(name: &OsStr, other: &OsStr) -> bool {
    let chance = other.as_bytes().strip_prefix(name.as_bytes());
    let chance = chance.and_then(|rest| rest.strip_suffix(NEW.as_bytes()));
    chance.is_some_and(|chance| chance.len() == CHANCE && chance.iter().all(u8::is_ascii_alphanumeric))
}

fn folder_and_name(file: &Path) -> (&Path, &OsStr) {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    (folder, file.file_name().unwrap_or_default())
}

/// Writes through a symbolic link, not in its place.
pub(crate) fn replace(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    replace_if(file, content, || Ok(true)).map(drop)
}

/// The same, if `may` still says so at the last moment; whether it did. What somebody else writes between that and the
/// rename is lost, but these are microseconds, and no writing to a disk.
pub(crate) fn replace_if(
    file: &Path,
    content: &[u8],
    may: impl FnOnce() -> io::Result<bool>,
) -> anyhow::Result<bool> {
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let (folder, name) = folder_and_name(&file);
    let replaced = || {
        let open_to_all = fs::Permissions::from_mode(0o666); // less what the process keeps back
        // Of a name that no other process has: two may write the same file.
        let mut new = tempfile::Builder::new();
        let mut new =
            new.prefix(name).rand_bytes(CHANCE).suffix(NEW).permissions(open_to_all).tempfile_in(folder)?;
        if let Ok(old) = fs::metadata(&file) {
            new.as_file().set_permissions(old.permissions())?;
        }
        new.write_all(content)?;
        new.as_file().sync_all()?;
        let may = may()?;
        if may {
            new.persist(&file)?;
        }
        Ok(may)
    };
    let replaced: io::Result<bool> = replaced();
    let replaced = replaced.with_context(|| format!("cannot write {}", file.display()))?;
    // From the rename on everybody reads the new content: that it may not outlive a power cut is no failure.
    if replaced && let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::warn!("{} is written, but may be the old one after a power cut: {error}", file.display());
    }
    Ok(replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_locked_is_for_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("state.json.lock");
        let first = alone(&lock).unwrap();
        let why = alone(&lock).unwrap_err().to_string();
        assert!(why.starts_with("another penstock is using it"), "{why}");
        drop(first);
        alone(&lock).unwrap();
    }

    #[test]
    fn a_file_is_replaced_where_its_link_points_and_keeps_its_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        replace(&link, b"new").unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        assert!(replace(&folder.path().join("nowhere/file"), b"").is_err());
    }

    #[test]
    fn many_may_write_one_file_and_the_last_has_written_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let content = |writer: u8| vec![b'a' + writer; 100_000];
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let file = &file;
                scope.spawn(move || (0..20).for_each(|_| replace(file, &content(writer)).unwrap()));
            }
        });
        let written = fs::read(&file).unwrap();
        assert!((0..4).any(|writer| written == content(writer)), "{} bytes", written.len());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_has_left_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.yaml");
        let others = ["p.yaml", "p.yaml.new", "p.yaml.draft.new", "q.yamlAb3dEf.new", "p.yamlAb3dE-.new"];
        let left = ["p.yamlAb3dEf.new", "p.yaml000000.new"];
        others.iter().chain(&left).for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        fs::create_dir(folder.path().join("p.yamlfolder.new")).unwrap();
        let count = || fs::read_dir(folder.path()).unwrap().count();
        sweep(&file, Duration::from_secs(60));
        assert_eq!(count(), others.len() + left.len() + 1, "somebody may be writing them");
        sweep(&file, Duration::ZERO);
        assert_eq!(count(), others.len() + 1);
        assert!(others.iter().all(|name| folder.path().join(name).exists()));
        // What is looked for is what is written.
        let is_written = |entry: &fs::DirEntry| {
            is_new_of(OsStr::new("p.yaml"), &entry.file_name()) && entry.path().is_file()
        };
        let looks = || Ok(fs::read_dir(folder.path())?.flatten().filter(is_written).count() == 1);
        assert!(replace_if(&file, b"", looks).unwrap());
    }

    #[test]
    fn what_cannot_be_replaced_stays_alone() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("taken");
        fs::create_dir(&taken).unwrap();
        let error = replace(&taken, b"new").unwrap_err();
        assert!(format!("{error:#}").contains("taken: Is a directory"), "{error:#}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_synced_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "old").unwrap();
        // Enough to rename in it, and not to open it, unless one may do everything.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o300)).unwrap();
        replace(&file, b"new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn what_an_editor_has_saved_at_the_last_moment_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "seen").unwrap();
        let saved = || {
            fs::write(&file, "saved").unwrap();
            Ok(fs::read(&file)? == b"seen")
        };
        assert!(!replace_if(&file, b"new", saved).unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "saved");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
