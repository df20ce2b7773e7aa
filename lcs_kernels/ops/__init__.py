"""One file per op: its reference, fake, schema, autograd function and public function, top to bottom."""
