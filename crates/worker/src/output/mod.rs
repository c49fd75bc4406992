//! From bytes to the lines a master wants: decoding, splitting into lines, batching.
