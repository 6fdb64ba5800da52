//! The C face of the disk in `powerloss.rs`: the only unsafe code of this crate. It unpacks pointers and decides nothing.

#![allow(unsafe_code, reason = "a SQLite file layer is a table of C functions")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rusqlite::ffi;

use super::{Disk, Handle, SECTOR_BYTES};

/// Makes a disk known to SQLite under this name, for ever.
pub(super) fn register(name: &str, disk: Disk) -> c_int {
    let Ok(name) = CString::new(name) else { return ffi::SQLITE_ERROR };
    let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
        iVersion: 2,
        szOsFile: c_int::try_from(size_of::<OpenFile>()).unwrap_or(c_int::MAX),
        mxPathname: 1024,
        pNext: std::ptr::null_mut(),
        zName: name.into_raw(),
        pAppData: Box::into_raw(Box::new(disk)).cast(),
        xOpen: Some(x_open),
        xDelete: Some(x_delete),
        xAccess: Some(x_access),
        xFullPathname: Some(x_full_pathname),
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: Some(x_randomness),
        xSleep: Some(x_sleep),
        xCurrentTime: Some(x_current_time),
        xGetLastError: None,
        xCurrentTimeInt64: Some(x_current_time_int64),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }));
    // SAFETY: the structure, its name and its data live for ever.
    unsafe { ffi::sqlite3_vfs_register(vfs, 0) }
}

/// What SQLite allocates for a file: its own part first, ours behind it.
#[repr(C)]
struct OpenFile {
    base: ffi::sqlite3_file,
    handle: *mut Handle,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(x_close),
    xRead: Some(x_read),
    xWrite: Some(x_write),
    xTruncate: Some(x_truncate),
    xSync: Some(x_sync),
    xFileSize: Some(x_file_size),
    xLock: Some(x_lock),
    xUnlock: Some(x_unlock),
    xCheckReservedLock: Some(x_check_reserved_lock),
    xFileControl: Some(x_file_control),
    xSectorSize: Some(x_sector_size),
    xDeviceCharacteristics: Some(x_device_characteristics),
    xShmMap: Some(x_shm_map),
    xShmLock: Some(x_shm_lock),
    xShmBarrier: Some(x_shm_barrier),
    xShmUnmap: Some(x_shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// The disk behind a file layer.
///
/// # Safety
/// The pointer is one of a file layer that `register` made.
unsafe fn disk<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a Disk {
    // SAFETY: `pAppData` was made from a box of this type that is never freed.
    unsafe { &*(*vfs).pAppData.cast::<Disk>() }
}

/// The handle behind a file.
///
/// # Safety
/// The pointer is one of a file that `x_open` opened and `x_close` has not closed, used by one thread at a time.
unsafe fn handle<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Handle {
    // SAFETY: SQLite allocated `szOsFile` bytes for it, `x_open` put a box's pointer there, and a connection is never
    // used by two threads at once.
    unsafe { &mut *(*file.cast::<OpenFile>()).handle }
}

/// The text behind a name.
///
/// # Safety
/// The pointer is null or that of a C string that outlives the call.
unsafe fn text(name: *const c_char) -> String {
    if name.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// An offset or size, which SQLite never makes negative.
fn size(number: impl TryInto<usize>) -> usize {
    number.try_into().unwrap_or_default()
}

unsafe extern "C" fn x_open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    static UNNAMED: AtomicU64 = AtomicU64::new(0);
    // SAFETY: SQLite hands in our file layer and a name that is null or a C string.
    let (disk, mut name) = unsafe { (disk(vfs), text(name)) };
    if name.is_empty() {
        name = format!("unnamed-{}", UNNAMED.fetch_add(1, Ordering::Relaxed));
    }
    let file = file.cast::<OpenFile>();
    let Some(handle) = disk.open(name, flags) else {
        // SAFETY: SQLite hands in `szOsFile` bytes; without methods it will not close the file.
        unsafe { (*file).base.pMethods = std::ptr::null() };
        return ffi::SQLITE_CANTOPEN;
    };
    let opened = OpenFile { base: ffi::sqlite3_file { pMethods: &raw const METHODS }, handle: Box::into_raw(Box::new(handle)) };
    // SAFETY: SQLite hands in `szOsFile` aligned bytes, and a place for the flags or null.
    unsafe {
        file.write(opened);
        if !flags_out.is_null() {
            *flags_out = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_dir: c_int) -> c_int {
    // SAFETY: SQLite hands in our file layer and a C string.
    let (disk, name) = unsafe { (disk(vfs), text(name)) };
    disk.delete(&name, sync_dir != 0)
}

unsafe extern "C" fn x_access(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    // SAFETY: SQLite hands in our file layer and a C string.
    let (disk, name) = unsafe { (disk(vfs), text(name)) };
    // As SQLite's own layer has it, an empty file does not exist.
    let found = disk.size(&name).is_some_and(|bytes| flags != ffi::SQLITE_ACCESS_EXISTS || bytes > 0);
    // SAFETY: SQLite hands in a place for the answer.
    unsafe { *out = c_int::from(found) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_full_pathname(_: *mut ffi::sqlite3_vfs, name: *const c_char, room: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite hands in a C string.
    let bytes = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
    if bytes.len() > size(room) {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: SQLite hands in `room` bytes, which suffice.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len()) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_randomness(_: *mut ffi::sqlite3_vfs, count: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite hands in `count` bytes, and its default layer has every method.
    unsafe {
        let system = ffi::sqlite3_vfs_find(std::ptr::null());
        (*system).xRandomness.map_or(0, |f| f(system, count, out))
    }
}

unsafe extern "C" fn x_sleep(_: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    std::thread::sleep(std::time::Duration::from_micros(u64::try_from(microseconds).unwrap_or(0)));
    microseconds
}

unsafe extern "C" fn x_current_time(_: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: SQLite hands in a place for the answer, and its default layer has every method.
    unsafe {
        let system = ffi::sqlite3_vfs_find(std::ptr::null());
        (*system).xCurrentTime.map_or(ffi::SQLITE_ERROR, |f| f(system, out))
    }
}

unsafe extern "C" fn x_current_time_int64(_: *mut ffi::sqlite3_vfs, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: as in `x_current_time`.
    unsafe {
        let system = ffi::sqlite3_vfs_find(std::ptr::null());
        (*system).xCurrentTimeInt64.map_or(ffi::SQLITE_ERROR, |f| f(system, out))
    }
}

// In what follows SQLite hands in a file that `x_open` opened and that only one thread uses: see `handle`.

unsafe extern "C" fn x_close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: an open file; SQLite does not use it again, so its box is freed once.
    unsafe { Box::from_raw((*file.cast::<OpenFile>()).handle) }.close();
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_read(file: *mut ffi::sqlite3_file, out: *mut c_void, count: c_int, at: ffi::sqlite3_int64) -> c_int {
    // SAFETY: an open file, and `count` bytes to read into, which this fills with zeros first.
    let (handle, out) = unsafe {
        out.cast::<u8>().write_bytes(0, size(count));
        (handle(file), std::slice::from_raw_parts_mut(out.cast::<u8>(), size(count)))
    };
    handle.with(ffi::SQLITE_IOERR_READ, |file| {
        let rest = file.written.get(size(at)..).unwrap_or_default();
        for (target, source) in out.iter_mut().zip(rest) {
            *target = *source;
        }
        if rest.len() < out.len() { ffi::SQLITE_IOERR_SHORT_READ } else { ffi::SQLITE_OK }
    })
}

unsafe extern "C" fn x_write(file: *mut ffi::sqlite3_file, bytes: *const c_void, count: c_int, at: ffi::sqlite3_int64) -> c_int {
    // SAFETY: an open file, and `count` bytes to write.
    let (handle, bytes) = unsafe { (handle(file), std::slice::from_raw_parts(bytes.cast::<u8>(), size(count))) };
    handle.write(size(at), bytes)
}

unsafe extern "C" fn x_truncate(file: *mut ffi::sqlite3_file, to: ffi::sqlite3_int64) -> c_int {
    // SAFETY: an open file.
    unsafe { handle(file) }.change(ffi::SQLITE_IOERR_TRUNCATE, |file| {
        file.truncate(size(to));
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn x_sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: an open file.
    unsafe { handle(file) }.sync()
}

unsafe extern "C" fn x_file_size(file: *mut ffi::sqlite3_file, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: an open file, and a place for the answer.
    unsafe { handle(file) }.with(ffi::SQLITE_IOERR_FSTAT, |file| {
        // SAFETY: as above.
        unsafe { *out = file.written.len().try_into().unwrap_or(i64::MAX) };
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn x_lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: an open file.
    unsafe { handle(file) }.lock(level)
}

unsafe extern "C" fn x_unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: an open file.
    unsafe { handle(file) }.unlock(level)
}

unsafe extern "C" fn x_check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: an open file.
    unsafe { handle(file) }.with(ffi::SQLITE_IOERR_CHECKRESERVEDLOCK, |file| {
        // SAFETY: SQLite hands in a place for the answer.
        unsafe { *out = c_int::from(file.locks.reserved || file.locks.pending || file.locks.exclusive) };
        ffi::SQLITE_OK
    })
}

unsafe extern "C" fn x_file_control(_: *mut ffi::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn x_sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    c_int::try_from(SECTOR_BYTES).unwrap_or(c_int::MAX)
}

unsafe extern "C" fn x_device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    // A write never spoils bytes beside it; SQLite's own layer promises the same.
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn x_shm_map(file: *mut ffi::sqlite3_file, region: c_int, bytes: c_int, extend: c_int, out: *mut *mut c_void) -> c_int {
    // SAFETY: an open file.
    let mapped = unsafe { handle(file) }.shm_map(size(region), size(bytes), extend != 0);
    // SAFETY: SQLite hands in a place for the address. The memory behind it lives until the file is unmapped or closed.
    unsafe { *out = mapped.unwrap_or(std::ptr::null_mut()) };
    mapped.map_or_else(|failure| failure, |_| ffi::SQLITE_OK)
}

unsafe extern "C" fn x_shm_lock(file: *mut ffi::sqlite3_file, from: c_int, count: c_int, flags: c_int) -> c_int {
    // SAFETY: an open file.
    unsafe { handle(file) }.shm_lock(size(from), size(count), flags)
}

unsafe extern "C" fn x_shm_barrier(_: *mut ffi::sqlite3_file) {
    fence(Ordering::SeqCst);
}

unsafe extern "C" fn x_shm_unmap(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: an open file.
    unsafe { handle(file) }.shm_unmap();
    ffi::SQLITE_OK
}
