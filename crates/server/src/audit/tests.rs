//! The journal at its seams: groups, crashes, sealing, questions.
