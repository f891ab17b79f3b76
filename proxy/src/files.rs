//! Replaces a file at once: whoever reads it, or is killed meanwhile, finds the old content or the new one.

use anyhow::Context;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Writes through a symbolic link, not in its place.
pub(crate) fn replace(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = folder.join(name);
    let written = || {
        let mut to = File::create(&new)?;
        if let Ok(old) = fs::metadata(&file) {
            to.set_permissions(old.permissions())?;
        }
        to.write_all(content)?;
        to.sync_all()?;
        fs::rename(&new, &file)?;
        File::open(folder)?.sync_all()
    };
    written().with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
}
