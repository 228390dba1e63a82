/* What the emulator asks for and tells at C speed: pages that are known already, and what ran;
 * taking back what was written; and telling states apart. The same as PythonHooks in hooks.py,
 * Machine._fill, Memory, Runner and Counter do, which see. struct table mirrors Table in memory.py,
 * struct log _Log in hooks.py, struct access ACCESS in track.py, struct run and struct counter
 * _Run and _Counter in registers.py. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096
#define LINE 64
#define BUCKETS (1 << 17)
#define ARENA ((uint64_t)PAGE << 16)  /* bytes; behind them the same again, for code */
#define MAX_REGISTERS 32

/* Its own source, by which hooks.py tells a library that was built from another. */
__asm__(".section .rodata\n.global kwhy_hooks_source\n"
	"kwhy_hooks_source: .incbin \"" __FILE__ "\"\n.byte 0\n.previous");

typedef struct uc_struct uc_engine;
typedef struct { uint64_t paddr; int perms; } tlb_entry;  /* uc_tlb_entry */
enum { WRITABLE = 1, DIRTY = 2 };
enum { MEM_WRITE = 17, MEM_FETCH = 18 };                  /* UC_MEM_* */
enum { PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4 };    /* UC_PROT_* */

struct table {
	const uint64_t *keys;
	const uint32_t *slots;
	const uint64_t *pages;
	uint8_t *flags;
	uint32_t *dirty;
	uint8_t *arena;
	const uint8_t *baseline;
	uint64_t n_dirty;
};
struct block { uint64_t address, size; };
struct access {
	uint64_t value, address;
	uint32_t block;
	uint16_t offset;
	uint8_t size, write;
};
struct log {
	uint64_t limit, max_accesses, n_blocks, n_accesses, full;
	struct block *blocks;
	uint64_t *registers;
	struct access *accesses;
	const struct table *table;
	int (*stop)(uc_engine *);
	const uint64_t *registers_now;  /* the emulator's own, the program counter last; or NULL */
	int (*read_registers)(uc_engine *, int *, void **, int);
	int *register_ids;              /* the program counter last */
	uint64_t n_registers, detail;   /* n_registers: without the program counter */
	uint64_t halt;                  /* the block there is no part of what ran */
};
struct counter {
	int (*write_registers)(uc_engine *, int *, void *const *, int);
	int (*ask)(uc_engine *, void *);
	int *ids;
	void **values;
	int count, known;
};
struct run {
	int (*write_registers)(uc_engine *, int *, void *const *, int);
	int (*start)(uc_engine *, uint64_t, uint64_t, uint64_t, size_t);
	int (*read_registers)(uc_engine *, int *, void **, int);
	uc_engine *uc;
	int *given_ids;
	void **given;
	int *told_ids;
	void **told;
	int n_given, n_told;
	uint64_t fresh;                 /* whether the given registers are to be written */
};

/* The slot that holds a page, -1 when none does. */
static int64_t slot_of(const struct table *table, uint64_t page)
{
	uint64_t bucket = page * 0x9E3779B97F4A7C15u >> (64 - 17);

	while (table->keys[bucket] != (page | 1)) {
		if (!table->keys[bucket])
			return -1;
		bucket = (bucket + 1) % BUCKETS;
	}
	return table->slots[bucket];
}

static void grant(struct table *table, int64_t slot)
{
	if (!(table->flags[slot] & DIRTY)) {
		table->flags[slot] |= DIRTY;
		table->dirty[table->n_dirty++] = (uint32_t)slot;
	}
}

/* A TLB miss: true if the page is here and may be used so; else Python is asked. */
bool kwhy_on_fill(uc_engine *uc, uint64_t address, int kind, tlb_entry *entry, void *data)
{
	struct table *table = data;
	int64_t slot = slot_of(table, address & -(uint64_t)PAGE);

	(void)uc;
	if (slot < 0)
		return false;
	if (kind == MEM_WRITE) {
		if (!(table->flags[slot] & WRITABLE))
			return false;
		grant(table, slot);
	}
	entry->paddr = (uint64_t)slot * PAGE;
	if (kind == MEM_FETCH) {
		entry->paddr += ARENA;
		entry->perms = PROT_READ | PROT_EXEC;
	} else {
		entry->perms = PROT_READ | (table->flags[slot] & DIRTY ? PROT_WRITE : 0);
	}
	return true;
}

void kwhy_rollback(struct table *table)
{
	for (uint64_t i = 0; i < table->n_dirty; i++) {
		uint64_t at = (uint64_t)table->dirty[i] * PAGE;

		memcpy(table->arena + at, table->baseline + at, PAGE);
	}
}

static bool differ(const uint64_t *line, const uint64_t *other)
{
	uint64_t bits = 0;

	for (int n = 0; n < LINE / 8; n++)
		bits |= line[n] ^ other[n];
	return bits;
}

/* Writes a State (memory.py) to out; the number of words. */
size_t kwhy_state(const struct table *table, uint64_t *out)
{
	uint64_t *begin = out;

	for (uint64_t i = 0; i < table->n_dirty; i++) {
		uint64_t at = (uint64_t)table->dirty[i] * PAGE;
		const uint64_t *now = (const uint64_t *)(table->arena + at);
		const uint64_t *was = (const uint64_t *)(table->baseline + at);
		uint64_t *line = out + 2, mask = 0;

		for (int n = 0; n < PAGE / LINE; n++, now += LINE / 8, was += LINE / 8)
			if (differ(now, was)) {
				mask |= 1ull << n;
				memcpy(line, now, LINE);
				line += LINE / 8;
			}
		if (mask) {
			out[0] = table->pages[table->dirty[i]];
			out[1] = mask;
			out = line;
		}
	}
	return (size_t)(out - begin);
}

/* Goes on with a State at byte `at`; the place of the first page that is not here, or the end. */
size_t kwhy_restore(struct table *table, const uint8_t *state, size_t size, size_t at)
{
	while (at < size) {
		uint64_t head[2];
		int64_t slot;

		if (size - at < sizeof(head))
			return size;
		memcpy(head, state + at, sizeof(head));
		slot = slot_of(table, head[0]);
		if (slot < 0)
			return at;
		grant(table, slot);
		at += sizeof(head);
		for (int n = 0; n < PAGE / LINE; n++)
			if (head[1] >> n & 1) {
				if (size - at < LINE)
					return size;
				memcpy(table->arena + slot * PAGE + n * LINE, state + at, LINE);
				at += LINE;
			}
	}
	return at;
}

static void fill_up(uc_engine *uc, struct log *log)
{
	log->full = 1;
	log->stop(uc);
}

void kwhy_on_block(uc_engine *uc, uint64_t address, uint32_t size, void *data)
{
	struct log *log = data;

	if (address == log->halt)
		return;
	if (log->n_blocks >= log->limit)
		return fill_up(uc, log);
	if (log->detail) {
		uint64_t *row = log->registers + log->n_blocks * log->n_registers;
		void *rows[MAX_REGISTERS];

		if (log->registers_now) {
			memcpy(row, log->registers_now, log->n_registers * sizeof(*row));
		} else {
			for (uint64_t i = 0; i < log->n_registers && i < MAX_REGISTERS; i++)
				rows[i] = row + i;
			log->read_registers(uc, log->register_ids, rows, (int)log->n_registers);
		}
	}
	log->blocks[log->n_blocks].address = address;
	log->blocks[log->n_blocks].size = size;
	if (++log->n_blocks >= log->limit)
		fill_up(uc, log);
}

/* The program counter is exact here: the emulator works it out before it calls a memory hook. */
void kwhy_on_access(uc_engine *uc, int kind, uint64_t place, int size, int64_t value, void *data)
{
	struct log *log = data;
	struct access *access;
	uint64_t pc = 0;
	void *where = &pc;

	if (log->n_accesses >= log->max_accesses)
		return fill_up(uc, log);
	if (log->registers_now)
		pc = log->registers_now[log->n_registers];
	else
		log->read_registers(uc, log->register_ids + log->n_registers, &where, 1);
	access = &log->accesses[log->n_accesses++];
	access->block = (uint32_t)(log->n_blocks - 1);
	access->offset = (uint16_t)(pc - log->blocks[log->n_blocks - 1].address);
	access->address = log->table->pages[place % ARENA / PAGE] + place % PAGE;
	access->size = (uint8_t)size;
	access->write = kind == MEM_WRITE;
	access->value = size >= 8 ? (uint64_t)value : (uint64_t)value & ((1ull << 8 * size) - 1);
}

/* The time-stamp counter is read: it always shows the same, which Python tells at the first time. */
int kwhy_on_counter(uc_engine *uc, void *data)
{
	struct counter *counter = data;

	if (!counter->known)
		return counter->ask(uc, data);
	counter->write_registers(uc, counter->ids, counter->values, counter->count);
	return 1;
}

/* Runs from start, with the given registers first if they are fresh; the emulator's status. */
int kwhy_run(struct run *run, uint64_t start, uint64_t until)
{
	int status;

	if (run->fresh)
		run->write_registers(run->uc, run->given_ids, run->given, run->n_given);
	run->fresh = 0;
	status = run->start(run->uc, start, until, 0, 0);
	run->read_registers(run->uc, run->told_ids, run->told, run->n_told);
	return status;
}

/* -- keys.py: a tree of looks at memory ---------------------------------------------------------- */

struct look {
	uint64_t at, value;                  /* the value found here first, and what it led to */
	uint32_t next, size;                 /* size 0: a leaf, and `at` its key's number */
};
struct value { uint64_t value; uint32_t look, next; };  /* next 0: the bucket is free */
struct keys {
	struct look *looks;
	struct value *values;                /* buckets, by look: other values than the first */
	uint64_t n_looks, room, buckets, max_looks;
};

struct keys *kwhy_keys_new(uint64_t max_looks)
{
	struct keys *keys = calloc(1, sizeof(*keys));

	if (keys)
		keys->max_looks = max_looks;
	return keys;
}

void kwhy_keys_free(struct keys *keys)
{
	free(keys->looks);
	free(keys->values);
	free(keys);
}

/* The bucket of a value found by a look: a free one if it was not found there yet. */
static struct value *bucket_of(const struct keys *keys, uint64_t look, uint64_t value)
{
	uint64_t bucket = (value ^ look << 40 ^ look) * 0x9E3779B97F4A7C15u >> 20;
	struct value *found;

	do
		found = &keys->values[bucket++ % keys->buckets];
	while (found->next && (found->look != look || found->value != value));
	return found;
}

/* What a value leads to; 0 if that is not set yet. */
static uint32_t *next_of(const struct keys *keys, uint64_t look, uint64_t value)
{
	struct look *here = &keys->looks[look];
	struct value *found;

	if (!here->next)
		here->value = value;
	if (here->value == value)
		return &here->next;
	found = bucket_of(keys, look, value);
	found->value = value;
	found->look = (uint32_t)look;
	return &found->next;
}

/* Room for one look and value more; false where memory ends. Half of the buckets stay free. */
static bool more_room(struct keys *keys)
{
	uint64_t room = keys->room ? 2 * keys->room : 1 << 12;
	struct value *old = keys->values;
	uint64_t buckets = keys->buckets;
	struct look *looks;

	if (keys->n_looks < keys->room)
		return true;
	looks = realloc(keys->looks, room * sizeof(*looks));
	if (looks)
		keys->looks = looks;
	keys->values = calloc(2 * room, sizeof(*old));
	if (!looks || !keys->values) {
		free(keys->values);
		keys->values = old;
		return false;
	}
	keys->room = room;
	keys->buckets = 2 * room;
	for (uint64_t i = 0; i < buckets; i++)
		if (old[i].next)
			*bucket_of(keys, old[i].look, old[i].value) = old[i];
	free(old);
	return true;
}

static bool look_at(const struct table *table, uint64_t at, uint64_t size, uint64_t *value)
{
	int64_t slot = slot_of(table, at & -(uint64_t)PAGE);

	*value = 0;
	if (slot < 0 || size > sizeof(*value) || at % PAGE + size > PAGE)
		return false;
	memcpy(value, table->arena + slot * PAGE + at % PAGE, size);
	return true;
}

/* The number of the key of the state that the memory is in; -1 when it is not known. */
int64_t kwhy_keys_find(const struct keys *keys, const struct table *table)
{
	const struct look *look = keys->looks;
	uint64_t value;

	if (!look)
		return -1;
	while (look->size) {
		if (!look_at(table, look->at, look->size, &value))
			return -1;
		value = *next_of(keys, (uint64_t)(look - keys->looks), value);
		if (!value)
			return -1;
		look = &keys->looks[value];
	}
	return (int64_t)look->at;
}

/* Keeps the looks that led to a key; the number of the key that they lead to, -1 if they are not
 * kept: there are too many, or they are not those that the same values led to before. */
int64_t kwhy_keys_add(struct keys *keys, const struct table *table, const uint64_t (*looks)[2],
		      uint64_t count, uint64_t number)
{
	uint64_t look = 0, value;
	uint32_t *next;

	if (keys->n_looks + count >= keys->max_looks || !more_room(keys))
		return -1;
	for (uint64_t i = 0; i <= count; i++) {
		uint64_t at = i < count ? looks[i][0] : number, size = i < count ? looks[i][1] : 0;

		if (look == keys->n_looks)
			keys->looks[keys->n_looks++] = (struct look){ at, 0, 0, (uint32_t)size };
		if (keys->looks[look].size != size || (size && keys->looks[look].at != at))
			return -1;
		if (!size)
			break;
		if (!look_at(table, at, size, &value) || !more_room(keys))
			return -1;
		next = next_of(keys, look, value);
		if (!*next)
			*next = (uint32_t)keys->n_looks;
		look = *next;
	}
	return (int64_t)keys->looks[look].at;
}
