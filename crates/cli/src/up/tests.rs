//! The same start-up functions, in one process, on a clock that can be moved.
