//! One QEMU virtual machine.
