// Just enough JSON to take apart a network configuration: values are spans of the text that was
// read, and nothing is allocated. The text is checked whole (RFC 8259) before anything of it is used.
#ifndef JSON_H
#define JSON_H
#include <stdbool.h>
#include <stddef.h>

struct span {
    const char *start;
    size_t length;
};

// Whether the text is one JSON value, white space around it allowed; `value` is that without the
// white space.
bool json_check(struct span text, struct span *value);

// The value of a member of an object; false where the object has none (or is no object). Where a
// name stands twice the last one counts, as for most readers.
bool json_member(struct span object, const char *name, struct span *value);

// Calls for each element of an array until `visit` returns true, and returns whether it did.
bool json_any(struct span array, bool (*visit)(struct span element, void *context), void *context);

// The text of a string value; false where it is none, has an escape that a name or path of ours
// never needs, or does not fit.
bool json_string(struct span value, char *into, size_t size);

// A whole number between 0 and `most`; false where the value is something else.
bool json_number(struct span value, long most, long *number);
#endif
