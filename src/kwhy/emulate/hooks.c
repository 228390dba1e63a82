/* What the emulator asks for and tells at C speed: pages that are known already, and what ran; and
 * taking back what was written. The same as PythonHooks in hooks.py, Machine._fill and Memory do,
 * which see; struct table mirrors Table in memory.py, struct log _Log in hooks.py, struct access
 * ACCESS in track.py. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
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

/* Writes a State (memory.py) to out; the number of words. */
size_t kwhy_state(const struct table *table, uint64_t *out)
{
	uint64_t *begin = out;

	for (uint64_t i = 0; i < table->n_dirty; i++) {
		const uint8_t *now = table->arena + (uint64_t)table->dirty[i] * PAGE;
		const uint8_t *was = table->baseline + (uint64_t)table->dirty[i] * PAGE;
		uint64_t *line = out + 2, mask = 0;

		for (int n = 0; n < PAGE / LINE; n++)
			if (memcmp(now + n * LINE, was + n * LINE, LINE)) {
				mask |= 1ull << n;
				memcpy(line, now + n * LINE, LINE);
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
