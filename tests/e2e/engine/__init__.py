"""A package, so that its `case` ends with it: a fixture of scope `package` needs one."""
