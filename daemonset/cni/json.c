#include "json.h"

#include <string.h>

enum { DEEPEST = 64 };

struct reader {
    const char *at;
    const char *end;
};

static bool read_value(struct reader *reader, int depth);

static void skip_space(struct reader *reader) {
    while (reader->at < reader->end && strchr(" \t\r\n", *reader->at) && *reader->at) reader->at++;
}

static bool take(struct reader *reader, char wanted) {
    if (reader->at == reader->end || *reader->at != wanted) return false;
    reader->at++;
    return true;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_hex(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool read_escape(struct reader *reader) {
    if (reader->at == reader->end) return false;
    char kind = *reader->at++;
    if (kind != 'u') return kind && strchr("\"\\/bfnrt", kind);
    for (int i = 0; i < 4; i++)
        if (reader->at == reader->end || !is_hex(*reader->at++)) return false;
    return true;
}

static bool read_string(struct reader *reader) {
    if (!take(reader, '"')) return false;
    while (reader->at < reader->end) {
        unsigned char c = (unsigned char)*reader->at++;
        if (c == '"') return true;
        if (c < 0x20) return false;
        if (c == '\\' && !read_escape(reader)) return false;
    }
    return false;
}

static bool read_digits(struct reader *reader) {
    const char *first = reader->at;
    while (reader->at < reader->end && is_digit(*reader->at)) reader->at++;
    return reader->at > first;
}

static bool read_number(struct reader *reader) {
    take(reader, '-');
    if (!take(reader, '0') && !read_digits(reader)) return false;
    if (take(reader, '.') && !read_digits(reader)) return false;
    if (take(reader, 'e') || take(reader, 'E')) {
        if (!take(reader, '+')) take(reader, '-');
        return read_digits(reader);
    }
    return true;
}

static bool read_word(struct reader *reader, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, word, length) != 0)
        return false;
    reader->at += length;
    return true;
}

static bool read_name(struct reader *reader) {
    skip_space(reader);
    if (!read_string(reader)) return false;
    skip_space(reader);
    return take(reader, ':');
}

// What an object and an array have in common: values with commas between two brackets.
static bool read_values(struct reader *reader, char last, bool named, int depth) {
    reader->at++;
    skip_space(reader);
    if (take(reader, last)) return true;
    do {
        if (named && !read_name(reader)) return false;
        if (!read_value(reader, depth)) return false;
        skip_space(reader);
    } while (take(reader, ','));
    return take(reader, last);
}

static bool read_value(struct reader *reader, int depth) {
    if (depth == DEEPEST) return false;
    skip_space(reader);
    if (reader->at == reader->end) return false;
    switch (*reader->at) {
        case '{': return read_values(reader, '}', true, depth + 1);
        case '[': return read_values(reader, ']', false, depth + 1);
        case '"': return read_string(reader);
        case 't': return read_word(reader, "true");
        case 'f': return read_word(reader, "false");
        case 'n': return read_word(reader, "null");
        default: return read_number(reader);
    }
}

static struct span value_at(struct reader *reader) {
    skip_space(reader);
    struct span value = {reader->at, 0};
    read_value(reader, 0);
    value.length = (size_t)(reader->at - value.start);
    return value;
}

bool json_check(struct span text, struct span *value) {
    struct reader reader = {text.start, text.start + text.length};
    skip_space(&reader);
    value->start = reader.at;
    if (!read_value(&reader, 0)) return false;
    value->length = (size_t)(reader.at - value->start);
    skip_space(&reader);
    return reader.at == reader.end;
}

bool json_member(struct span object, const char *name, struct span *value) {
    struct reader reader = {object.start, object.start + object.length};
    size_t length = strlen(name);
    bool found = false;
    if (!take(&reader, '{')) return false;
    do {
        skip_space(&reader);
        const char *key = reader.at + 1;
        if (!read_string(&reader)) break;  // the object is empty
        bool same = (size_t)(reader.at - 1 - key) == length && memcmp(key, name, length) == 0;
        skip_space(&reader);
        take(&reader, ':');
        struct span each = value_at(&reader);
        if (same) {
            *value = each;
            found = true;
        }
        skip_space(&reader);
    } while (take(&reader, ','));
    return found;
}

bool json_any(struct span array, bool (*visit)(struct span element, void *context), void *context) {
    struct reader reader = {array.start, array.start + array.length};
    if (!take(&reader, '[')) return false;
    do {
        struct span element = value_at(&reader);
        if (element.length == 0) return false;  // the array is empty
        if (visit(element, context)) return true;
        skip_space(&reader);
    } while (take(&reader, ','));
    return false;
}

bool json_string(struct span value, char *into, size_t size) {
    if (value.length < 2 || value.start[0] != '"') return false;
    size_t length = 0;
    for (size_t i = 1; i < value.length - 1; i++) {
        char c = value.start[i];
        if (c == '\\') {
            c = value.start[++i];
            if (c != '"' && c != '\\' && c != '/') return false;
        }
        if (length + 1 >= size) return false;
        into[length++] = c;
    }
    into[length] = '\0';
    return true;
}

bool json_number(struct span value, long most, long *number) {
    long found = 0;
    if (value.length == 0) return false;
    for (size_t i = 0; i < value.length; i++) {
        if (!is_digit(value.start[i])) return false;
        found = found * 10 + (value.start[i] - '0');
        if (found > most) return false;
    }
    *number = found;
    return true;
}
