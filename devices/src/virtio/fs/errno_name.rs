//! Names of error numbers, for people and for what they write.

macro_rules! errnos {
    ($($name:ident)*) => {
        /// What Linux has (asm-generic/errno-base.h, errno.h) and a file system can be imagined to answer.
        const ERRNOS: &[(&str, i32)] = &[$((stringify!($name), libc::$name)),*];
    };
}

errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV
    ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK
    ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENODATA ETIME ECOMM EPROTO EBADMSG EOVERFLOW EILSEQ EUSERS EOPNOTSUPP
    ETIMEDOUT ECONNREFUSED EHOSTDOWN EALREADY EINPROGRESS ESTALE EUCLEAN EREMOTEIO EDQUOT ECANCELED ENOKEY EKEYEXPIRED
    EOWNERDEAD
}

/// The name of an error number.
pub(super) fn errno_name(number: i32) -> Option<&'static str> {
    ERRNOS.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}

/// The number of a name in capitals.
pub(super) fn errno_number(name: &str) -> Option<i32> {
    ERRNOS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_to_each_other() {
        for (name, number) in ERRNOS {
            assert_eq!((errno_name(*number), errno_number(name)), (Some(*name), Some(*number)));
        }
        assert_eq!((errno_number("EIO"), errno_name(28)), (Some(5), Some("ENOSPC")));
        assert_eq!((errno_number("EWHAT"), errno_name(0), errno_name(4095)), (None, None, None));
    }
}
