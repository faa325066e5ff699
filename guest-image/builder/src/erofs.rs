//! mkfs.erofs on a plain folder. The root image calls it from mmdebstrap's hook instead, see `root_image/finish.sh`.

use std::path::Path;

use crate::debian_root::EPOCH;
use crate::error::Result;
use crate::progress::Progress;
use crate::tool::{Tool, locate, require};

/// Fixed, as nothing looks for these images by UUID.
const UUID: &str = "76a5a3e0-3a6c-4b1f-9d5e-0d7a6c2f1b02";

/// Makes the image `to` of the folder `from`. Everything in it belongs to root; the same content gives the same bytes.
pub(crate) fn make(from: &Path, to: &Path, progress: &dyn Progress) -> Result<()> {
    const DOING: &str = "making an erofs image";
    require(&["mkfs.erofs"], DOING)?;
    Tool::new(&locate("mkfs.erofs"), DOING, to)
        .args(["--quiet", "--all-root", "-Eforce-inode-compact", "-x-1"])
        .args([format!("-T{EPOCH}"), format!("-U{UUID}")])
        .args([to, from])
        .run(progress)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_same_files_give_the_same_image_whenever_and_wherever_they_were_written() {
        if locate("mkfs.erofs") == "mkfs.erofs" {
            eprintln!("mkfs.erofs is not installed: nothing was tested");
            return;
        }
        let image = |order: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            let tree = dir.path().join("tree");
            fs::create_dir_all(tree.join("sub")).unwrap();
            for name in order {
                fs::write(tree.join(name), name.repeat(3000)).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let to = dir.path().join("image");
            make(&tree, &to, &crate::Silent).unwrap();
            fs::read(to).unwrap()
        };
        assert!(image(&["a", "b", "sub/c"]) == image(&["sub/c", "b", "a"]));
        assert!(image(&["a", "b"]) != image(&["a"]));
    }
}
